"""The accuracy benchmark's arms, its arithmetic, and once the whole on a tiny folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import cifar100
from fastsc import runlog
from fastsc.options import load_recipe, parse

NAMES = ("ce-2e", "both", "default")


def found() -> dict[tuple[str, int], dict[str, float]]:
    rng = np.random.default_rng(0)
    return {
        (name, seed): dict(zip(cifar100.MEASURES, rng.random(4).tolist(), strict=True))
        for name in NAMES
        for seed in range(3)
    }


def test_arms_are_commands_that_the_trainer_takes() -> None:
    recipe = load_recipe("cifar100")
    for name, options in cifar100.arms(7).items():
        config = parse(["cifar100", "--data", "d", *options])
        assert config.optim.epochs == (14 if name == "ce-2e" else 7)
        if name in ("ce", "ce-2e", "both"):
            views = "both" if name == "both" else "clean"
            assert (config.method.alpha, config.method.ce_views) == (0, views)
        elif name == "default":
            assert config.method == recipe.method
        else:
            kind, alpha = name.removesuffix("-clean").rsplit("-", 1)
            assert (config.method.ds, config.method.alpha) == (kind, float(alpha))
        assert config.data == recipe.data.__class__(**{**recipe.data.__dict__, "data": "d"})


def test_differences_are_seed_by_seed() -> None:
    values = found()
    results = {row["name"]: row for row in cifar100.rows(values, NAMES, range(3))}
    assert len(results) == 3 * 4 + (1 + 1 + 2) * 3
    top1 = np.array([[values[name, seed]["top1"] for seed in range(3)] for name in NAMES])
    row = results["cifar100/default/top1"]
    assert row["mean"] == pytest.approx(top1[2].mean())
    assert row["sd"] == pytest.approx(top1[2].std(ddof=1))
    assert row["median"] == np.median(top1[2])
    assert (row["n"], row["unit"]) == (3, "fraction")
    row = results["cifar100/default-minus-both/top1"]
    assert row["values"] == pytest.approx(top1[2] - top1[1])
    assert row["sd"] == pytest.approx((top1[2] - top1[1]).std(ddof=1))
    assert not any("ce-2e-minus-ce-2e" in name for name in results)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--arms ce nonsense", "no arm nonsense; there are ce, ce-2e, both, default"),
        ("--seeds 0", "must be at least 1"),
        ("--epochs 0", "must be at least 1"),
        ("--json no/such/folder.json", "there is no folder no/such"),
    ],
)
def test_mistakes_end_before_anything_runs(
    words: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cifar100.main(["--data", "d", "--out", str(tmp_path / "runs"), *words.split()])
    assert part in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_whole_on_a_tiny_folder(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "runs", tmp_path / "results.json"
    words = ["--data", str(image_folder), "--out", str(out), "--json", str(file), "--seeds", "1"]
    words += ["--arms", "both", "default", "--epochs", "1", "--jobs", "2"]
    words += ["--model", "fastsc:resnet8w4", "--batch-size", "8", "--crop", "none"]
    assert cifar100.main(words) == 0
    assert "default − both" in capsys.readouterr().out
    results = {row["name"]: row for row in json.loads(file.read_text())["results"]}
    log = runlog.read(out / "default-e1-0" / "log.jsonl")
    (val,) = [event["val"] for event in log if event["event"] == "epoch"]
    assert results["cifar100/default/ds_relative"]["values"] == [val["ds_relative"]]
    before = (out / "default-e1-0" / "log.jsonl").read_text()
    assert cifar100.main(words) == 0  # and nothing is run again
    assert (out / "default-e1-0" / "log.jsonl").read_text() == before
    assert cifar100.main([*words, "--momentum", "7"]) == 1
    assert "--momentum must be at most 1" in capsys.readouterr().err
