"""--perturb of a whole run: its header, its resume, its replay, and what a user does wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastsc.config.recipes import configure, dump, load_recipe
from fastsc.evaluation.models.sources import load_source
from fastsc.pipelines import perturbing
from fastsc.replay import main as replay
from fastsc.training.step import Step
from tests.fastsc.runs import events, run, same_weights

OWN = "tests.pipelines.perturb_cases:darker"
LISTED = ("--perturb", "blur=20", "jpeg", OWN, "--val", "none")


def test_header_resume_and_replay(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = {}
    train_step = Step.train_step

    def record(self, batch, **options):  # type: ignore[no-untyped-def]
        seen[self.step + 1] = batch.perturbed.clone()
        return train_step(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", record)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(image_folder, whole, *LISTED) == 0
    (header,) = events(whole, "header")
    assert header["perturb"] == ["blur=20", "jpeg", OWN]
    assert list(header["perturb_sources"]) == [OWN]
    assert load_recipe(str(whole / "config.yaml")).data.perturb == ("blur=20", "jpeg", OWN)

    # On another pipeline the list is the same one; in mid-epoch it goes on where it was.
    assert run(image_folder, parts, *LISTED, "--max-steps", "3") == 0
    assert run(image_folder, parts, "--resume", *LISTED) == 0
    assert same_weights(whole, parts)
    capsys.readouterr()
    for words in (("--val", "none"), (*LISTED[:2], *LISTED[4:])):
        assert run(image_folder, parts, "--resume", *words) == 2
        assert "cannot resume: --perturb has changed" in capsys.readouterr().err

    out = tmp_path / "replayed"
    step = max(seen)
    assert replay([str(whole), "--step", str(step), "--out", str(out)]) == 0
    with np.load(out / "batch.npz") as file:
        assert torch.equal(torch.from_numpy(file["perturbed"]), seen[step].contiguous())

    # The function is edited after the run: its name is the same, its source is not.
    own = perturbing.perturbations(header["perturb"] and tuple(header["perturb"])).own[OWN]
    monkeypatch.setattr(own, "source", "0" * 16)
    capsys.readouterr()
    assert replay([str(whole), "--step", "1", "--out", str(tmp_path / "again")]) == 2
    assert f"--perturb {OWN}: its source has changed" in capsys.readouterr().err
    assert run(image_folder, parts, "--resume", *LISTED, "--epochs", "3") == 2
    assert "cannot resume: what --perturb names has changed" in capsys.readouterr().err
    assert load_source(str(whole)).perturb == ("blur=20", "jpeg", OWN)
    assert load_file(whole / "weights.safetensors")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("blurr", "no operation 'blurr'; did you mean blur?"),
        ("blur=99", "the strength must be from 0 to 20"),
        ("tests.pipelines.perturb_cases:raises", "raises RuntimeError: no stain today"),
        ("tests.pipelines.perturb_cases:nan", "not finite"),
        ("tests.pipelines.perturb_cases:smaller", "returns (8, 31, 32, 3)"),
        ("tests.pipelines.perturb_cases:writes", "writes to its input"),
        ("tests.no_module:f", "ModuleNotFoundError"),
    ],
)
def test_a_mistake_is_one_line(
    image_folder: Path, tmp_path: Path, word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(image_folder, tmp_path / "run", "--perturb", word, "--val", "none") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--perturb {word}" in last
    assert said in last


def test_in_a_recipe_and_in_python() -> None:
    config = configure("cifar100", data="x", perturb=["blur", "jpeg=60"], strengths=(0, 0, 0, 0))
    assert config.data.perturb == ("blur", "jpeg=60")
    assert "\nperturb: [blur, jpeg=60]\n" in dump(config)
    # The perturbation that --ds-target needs may be of the list alone.
    configure("cifar100", data="x", perturb=["blur"], strengths=(0, 0, 0, 0), ds_target=0.1,
              alpha_warmup_epochs=None)  # fmt: skip
