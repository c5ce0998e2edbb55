"""Repair: a network's own answers in place of labels, a bound on what changes, a page."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fastsc import ContinuityLoss, replay
from fastsc.config.options import parse
from fastsc.datasets.folders import open_data
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.evaluation.options import Options
from fastsc.models.build import build_net
from fastsc.repairing.page import FIGURES, Outcome, write_page
from fastsc.run import checkpoint
from fastsc.run.folder import RunFolder
from fastsc.training.alpha import Keeper
from fastsc.training.answers import divergence
from fastsc.training.collapse import Spread
from fastsc.training.loaders import build_loaders
from tests.fastsc.distributed.test_ranks import ranked, single
from tests.fastsc.runs import events, same_weights, weights
from tests.fastsc.training.repairs import MODEL, repair
from tests.fastsc.training.test_train_mistakes import mistake

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


def net() -> nn.Module:
    """A network of somebody's own, which is not in evaluation mode and drops at random."""
    torch.manual_seed(3)
    trunk = build_net("fastsc:resnet8w4", 5, "cifar", 32)
    trunk.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 5))
    return trunk


@pytest.mark.usefixtures("undrawn")
def test_from_a_flat_folder_to_a_page_and_a_sentence(
    flat: Path, init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert repair(flat, out, *MODEL, "--init", init, "--epochs", "2", "--keep", "0.5", "--csv") == 0
    (header,), (told,) = events(out, "header"), events(out, "repair")
    assert (header["images"], header["val_images"]) == (29, 3), "a keyed tenth is held out"
    first = events(out, "step")[0]
    assert first["ce"] == pytest.approx(0, abs=1e-2), "the clean view's answers are its own"
    assert first["disagreement"] == 0
    rows = (out / "steps.csv").read_text().splitlines()
    assert rows[0].endswith(",disagreement,keep_gap")
    assert told["holds"] is True
    assert told["agreement"] >= 0.5
    assert "top1" not in told["before"]
    before, after = (checkpoint.load_safetensors(out / f"{name}.safetensors") for name in
                     ("before", "weights"))  # fmt: skip
    raw = {k.removeprefix("module."): v for k, v in torch.load(init)["state_dict"].items()}
    assert before[0].keys() == after[0].keys() == raw.keys()
    assert all(torch.equal(before[0][k], v) for k, v in raw.items())
    assert before[1]["classes"] == after[1]["classes"] == ["0", "1", "2", "3", "4"]
    for key, value in raw.items():
        moved = not torch.equal(after[0][key], value)
        assert moved == ("running" not in key and "num_batches" not in key), key
    said = capsys.readouterr().out
    assert "held-out images with their old answer" in said
    page = (out / "evaluation" / "report.html").read_text()
    assert "before" in page
    results = json.loads((out / "evaluation" / "results.json").read_text())
    assert results["metadata"]["images"] == 3
    assert {row["model"] for row in results["results"]} == {"before", "after"}
    assert {c["name"] for c in results["comparisons"]} >= {"ds_relative", "flips"}
    assert replay.main([str(out), "--step", "4", "--device", "cpu"]) == 0
    assert "step 4, epoch 1" in capsys.readouterr().out, "of the images less what was held out"
    more = ["--init", init, "--keep", "0.5", "--epochs", "2", "--resume"]
    assert repair(flat, out, *MODEL, *more) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_what_is_held_out_is_not_trained_on(flat: Path) -> None:
    config = parse(["repair", "--data", str(flat), "--init", "x"])
    train, val = open_data(config.data, labels=False)
    assert val is not None
    assert sorted(train.paths + val.paths) == sorted(path.name for path in flat.iterdir())
    again = open_data(config.replace(seed=5).data, labels=False).val
    assert again is not None
    assert again.paths == val.paths


def opened(folder: Path, *more: str) -> tuple[set[str], set[str]]:
    """The images that a repair trains on, and those that it holds out, relative to its folder."""
    config = parse(["repair", "--data", str(folder), "--init", "x", *more])
    train, val = open_data(config.data, labels=False)
    assert val is not None
    indices = (train, val)
    sets = [{os.path.relpath(i.path(int(k)), folder) for k in i.usable} for i in indices]
    return sets[0], sets[1]


def test_held_out_images_in_the_folder_are_not_trained_on(flat: Path, tmp_path: Path) -> None:
    """A folder of them, links to others, and photographs beside folders, which all count."""
    folder = tmp_path / "photos"
    shutil.copytree(flat, folder)
    names = sorted(path.name for path in folder.iterdir())
    (folder / "held").mkdir()
    for name in names[:4]:
        (folder / name).rename(folder / "held" / name)
    (folder / "held" / "link.jpg").symlink_to(folder / names[4])
    train, val = opened(folder, "--val", str(folder / "held"))
    assert train == set(names[5:])
    assert val == {f"held/{name}" for name in (*names[:4], "link.jpg")}
    (folder / "held").rename(folder / "val")
    (folder / "more").mkdir()
    (folder / names[6]).rename(folder / "more" / names[6])
    assert opened(folder)[0] == {*names[5:6], f"more/{names[6]}", *names[7:]}


def test_images_that_are_all_held_out(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder / "val", tmp_path / "data" / "val")
    words = ["repair", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    words += ["--init", "tests.fastsc.training.test_repair:net"]
    assert "all of its images are those that" in mistake(capsys, words)


def test_a_single_held_out_image_is_too_few(
    flat: Path, init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val").mkdir()
    shutil.copy(next(flat.iterdir()), tmp_path / "val" / "one.jpg")
    words = ["repair", "--data", str(flat), "--val", str(tmp_path / "val")]
    words += ["--out", str(tmp_path / "run"), *MODEL, "--init", init]
    assert "two held-out images at least, and there is 1" in mistake(capsys, words)
    assert not (tmp_path / "run").exists()


def test_training_images_are_cut_as_held_out_ones(flat: Path) -> None:
    config = parse(["repair", "--data", str(flat), "--init", "x", "--resolution", "32"])
    data = open_data(config.data, labels=False)
    loader, val = build_loaders(
        config, data, torch.device("cpu"), torch.float32, lambda _: None, Ranks()
    )
    assert val is not None
    assert loader.settings.train_crop == val.settings.val_crop == 0.875
    sides = np.minimum(data.train.heights, data.train.widths)
    assert (loader.plan().boxes[:, 2:].max(1) < sides).all()


@pytest.mark.usefixtures("no_page")
def test_a_functions_network(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class folders are taken, too; their names say nothing where the outputs have none."""
    monkeypatch.setattr("fastsc.repairing.page.CURVES", 2)
    out, name = tmp_path / "run", "tests.fastsc.training.test_repair:net"
    more = ["--init", name, "--epochs", "1", "--mean", "0.5", "0.5", "0.5", "--val-crop", "1"]
    assert repair(image_folder, out, *more) == 0
    assert weights(out).keys() == net().state_dict().keys()
    (told,) = events(out, "repair")
    assert told["n"] == 12
    facts = json.loads((out / "evaluation" / "results.json").read_text())
    assert facts["metadata"]["models"] == [name, name]
    assert events(out, "step")[0]["ce"] == pytest.approx(0, abs=1e-2), "nothing is dropped"


def test_the_page_is_of_what_the_run_perturbed_with(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a function's network, whose files have no run beside them that says so."""
    asked: list[Options] = []

    def evaluated(options: Options, *_: object) -> None:
        asked.append(options)
        raise UserError("enough")

    monkeypatch.setattr("fastsc.repairing.page.evaluate", evaluated)
    words = ["--init", "x", "--model", "tests.fastsc.training.test_repair:net"]
    config = parse(["repair", "--data", str(flat), *words, "--perturb", "gamma"])
    data = open_data(config.data, labels=False)
    with pytest.raises(UserError, match="enough"):
        write_page(config, data, RunFolder(tmp_path), Mock(), holds=True)
    assert asked[0].perturb == ("gamma",)


@pytest.mark.usefixtures("no_page")
def test_a_bound_that_cannot_be_held_is_said(
    flat: Path, init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--keep", "0.99", "--lr", "100", "--epochs", "2", "--alpha", "100"]
    assert repair(flat, tmp_path / "run", *MODEL, "--init", init, *more) == 0
    (kept,) = events(tmp_path / "run", "kept")
    at_end = kept["agreement_at_end"]
    assert at_end < 0.99
    said = "--keep 0.99 could not be held at any point: the weights are as before; at the end of "
    said += f"training {100 * at_end:.1f} % of 3 held-out images had their old answer"
    assert said in capsys.readouterr().out
    assert events(tmp_path / "run", "repair")[0]["holds"] is False
    before, after = (
        checkpoint.load_safetensors(tmp_path / "run" / f"{name}.safetensors")[0]
        for name in ("before", "weights")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("no_evaluation")
def test_an_interrupted_repair_ends_bit_for_bit_as_the_whole_one(
    flat: Path, init: str, tmp_path: Path
) -> None:
    """In mid-epoch, and without what it began with: answers and their share are in it."""
    source = shutil.copy(init, tmp_path / "source.pt")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = [*MODEL, "--init", str(source), "--epochs", "4", "--keep", "0.4", "--lr", "0.05"]
    more += ["--checkpoint-steps", "1", "--keep-checkpoints", "99"]
    assert repair(flat, whole, *more) == 0
    Path(source).unlink()
    shutil.copytree(whole, parts)
    (parts / "weights.safetensors").unlink()
    for path in (parts / "checkpoints").iterdir():
        if path.name > "step-00000005.pt":
            path.unlink()
    assert repair(flat, parts, *more, "--resume") == 0
    assert events(parts, "resume")[0]["step"] == 5
    assert same_weights(whole, parts)
    a, b = (checkpoint.load(run / "checkpoints" / "step-00000012.pt") for run in (whole, parts))
    assert a["multiplier"] == b["multiplier"]
    assert a["best"] == b["best"]
    assert a["ranks"][0]["disagreement"] == b["ranks"][0]["disagreement"]


@pytest.mark.usefixtures("no_evaluation")
def test_new_weights_are_not_left_with_an_old_page(
    flat: Path, init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair that goes on, and is killed between its weights and their page."""
    out, more = tmp_path / "run", [*MODEL, "--init", init, "--keep", "0.5", "--epochs"]
    assert repair(flat, out, *more, "1") == 0
    page = out / "evaluation" / "report.html"
    page.parent.mkdir()
    page.write_text("of one epoch")
    assert repair(flat, out, *more, "2", "--resume") == 0
    assert not page.exists()
    monkeypatch.setattr("fastsc.train.conclude", lambda *_: page.write_text("of two epochs"))
    assert repair(flat, out, *more, "2", "--resume") == 0
    assert page.read_text() == "of two epochs"


@pytest.mark.usefixtures("no_evaluation")
def test_two_ranks_repair_as_one(image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = build_net("fastsc:resnet8w4", 4, "cifar", 32).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    more = [*MODEL, "--epochs", "2", "--val-every", "2"]
    more += ["--init", str(tmp_path / "weights.pt"), "--objective", "self", "--bn", "frozen"]
    more += ["--keep", "0.95", "--alpha", "2", "--alpha-warmup-epochs", "0", "--ds", "sq"]
    more += ["--label-smoothing", "0", "--lr", "0.1"]
    single(image_folder, tmp_path / "one", *more)
    ranked(2, image_folder, tmp_path / "many", *more, "--no-page")
    runs = tmp_path / "one", tmp_path / "many"
    for a, b in zip(*(events(run, "step") for run in runs), strict=True):
        for name in ("loss", "ce", "ds", "ds_relative", "disagreement", "alpha", "lr"):
            # A divergence is the small difference of two entropies.
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), (a["step"], name)
    (a, b) = (events(run, "kept") for run in runs)
    assert [event["share"] for event in a] == [event["share"] for event in b] != [1]
    (a, b) = (weights(run) for run in runs)
    assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a)
    (a, b) = (events(run, "epoch")[-1]["val"] for run in runs)
    assert b == pytest.approx(a, rel=1e-3)


def test_the_loss_is_the_divergence_of_both_views() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, perturbed, teacher = (torch.randn(6, 5, generator=generator) for _ in range(3))
    answers = teacher.softmax(1)
    loss_of = ContinuityLoss(2.0, "mse", at="logits", ce_views="both")
    parts = divergence(loss_of(clean, perturbed[:4], answers), answers, 4)
    rows = [clean, perturbed[:4]], [answers, answers[:4]]
    kl = functional.kl_div(
        torch.cat(rows[0]).log_softmax(1), torch.cat(rows[1]), reduction="batchmean"
    )
    torch.testing.assert_close(parts.ce, kl)
    torch.testing.assert_close(parts.loss, kl + 2 * (clean[:4] - perturbed[:4]).square().mean())
    same = divergence(loss_of(teacher, teacher, answers), answers, 6)
    assert float(same.loss) == pytest.approx(0, abs=1e-6)


def test_the_multiplier_of_a_bound() -> None:
    """Alpha rises while less changes than may; where more does, it and the rate fall."""
    keeper, well = Keeper(8.0, 0.98, 500), Spread(10.0, 30.0)
    keeper.update(0.0, well)
    assert keeper.gap == 1.0
    assert keeper.value == pytest.approx(8 * math.exp(0.2))
    assert keeper.rate() == 1.0
    other = Keeper(8.0, 0.98, 500)
    other.load_state_dict(keeper.state_dict())
    for _ in range(40):
        other.update(0.2, well)
    assert other.value < 4
    assert other.rate() == pytest.approx(other.value / 8)
    exact = Keeper(8.0, 0.98, 500)
    exact.update(0.02, well)
    assert exact.value == pytest.approx(8.0)


def test_a_short_run_is_steered_as_often_as_a_long_one() -> None:
    updates = {n: sum(map(Keeper(8.0, 0.98, n).observes, range(n))) for n in (7, 70, 150, 5000)}
    assert updates == {7: 7, 70: 70, 150: 50, 5000: 500}


@pytest.mark.parametrize(
    ("after", "certain", "said"),
    [
        ((0.15, 0.05), True, "repaired: ds_relative 0.200 → 0.150 (-25 %), flips 5.0 → 5.0 %"),
        ((0.20, 0.05), True, "it did not work: "),
        ((0.15, 0.06), True, "it did not work: "),
        ((0.15, 0.04), False, "it did not work: "),
        ((math.nan, 0.05), True, "it did not work: "),
    ],
)
def test_the_sentence(after: tuple[float, float], certain: bool, said: str) -> None:
    """More flips, no change or one within its interval are no repair."""
    before, now = (dict(zip(FIGURES, pair, strict=False)) for pair in ((0.2, 0.05), after))
    outcome = Outcome(before, now, 0.98, 100, certain)
    assert outcome.sentence(0.97, holds=True).startswith(said)
    assert ("interval" in outcome.sentence(None, holds=True)) == (not certain)


def test_the_sentence_of_a_network_that_nothing_changes() -> None:
    figures = {"ds_relative": 0.0, "flips": 0.0}
    said = Outcome(figures, figures, 1.0, 100).sentence(None, holds=True)
    assert said.startswith("it did not work: ds_relative 0.000 → 0.000, flips 0.0 → 0.0 %")
