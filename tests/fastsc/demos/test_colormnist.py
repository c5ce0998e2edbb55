"""The color-bias demo's parts: the data, the commands, the table, the picture; and once all."""

from __future__ import annotations

import io
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastsc.colormnist_demo import main
from fastsc.config.options import load_recipe, parse
from fastsc.datasets.colormnist import prepare, prepared
from fastsc.demos import colormnist as demo
from fastsc.demos.colormnist import SPLITS, Score
from fastsc.demos.colormnist_figure import CAPTIONS, FILLS, Bar, draw
from fastsc.errors import UserError

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 30 images a class: a bright column whose place is the class, and noise."""
    rng = np.random.default_rng(5)
    labels = np.arange(300) % 10
    images = rng.integers(0, 90, (300, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label + 4] = 255
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colormnist") / "data"
    prepare(folder, 0.9, digits, 0)
    return folder


def scores_of(tops: dict[str, list[float]]) -> list[Score]:
    """The same accuracy on every folder; a number a seed."""
    return [
        Score(arm, seed, split, top1, top1 / 2, 1000)
        for (arm, values), split in product(tops.items(), SPLITS)
        for seed, top1 in enumerate(values)
    ]


def test_arms_are_commands_that_the_trainer_takes() -> None:
    recipe = load_recipe("colormnist")
    configs = {}
    for arm in demo.arms():
        words = demo.training_command(Path("data"), Path("run"), 3, arm, ("--epochs", "2"))
        assert words[:3] == ["-m", "fastsc.train", "colormnist"]
        config = configs[arm.key] = parse(words[2:])
        assert (config.run.seed, config.optim.epochs) == (3, 2)
        assert config.optim.batch_size == recipe.optim.batch_size
        if arm.hue:
            assert config.data.strengths == (*recipe.data.strengths[:3], arm.hue)
    methods = {key: (c.method.alpha, c.method.ce_views) for key, c in configs.items()}
    assert methods["ce"] == (0, "clean")
    assert methods["both"] == methods["both-circle"] == (0, "both")
    assert configs["constraint"].method == configs["constraint-circle"].method == recipe.method
    assert recipe.method.alpha > 0


def test_data_are_reused_if_their_settings_are_the_same(data: Path, digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    metadata = prepared(data, 0.9, digits)
    assert metadata["splits"]["train"]["n"] == 220
    for correlation, source in ((0.8, digits), (0.9, digits.with_name("others.npz")), (0.9, None)):
        with pytest.raises(UserError, match="other settings"):
            prepared(data, correlation, source)
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}


def test_a_users_folder_in_the_place_of_the_data_is_left_alone(
    digits: Path, tmp_path: Path
) -> None:
    for content in (None, "no json", "[]", "{}", '{"digits": 1}'):
        if content is not None:
            (tmp_path / "colormnist.json").write_text(content)
        with pytest.raises(UserError, match="choose another --out"):
            prepared(tmp_path, 0.9, digits)


def test_table_and_verdict_show_means_and_spreads() -> None:
    tops = {"ce": [0.25, 0.35], "both": [0.6, 0.7], "constraint": [0.9, 0.9]}
    tops |= {"both-circle": [0.985, 0.985], "constraint-circle": [0.98, 0.98]}
    scores, kinds = scores_of(tops), demo.arms()
    out = io.StringIO()
    Console(file=out, width=120).print(demo.results_table(kinds, scores))
    # The standard deviation of 25 and 35 is 10 / √2.
    for part in ("1000 test digits", "30.0 ± 7.1", "65.0 ± 7.1", "90.0 ± 0.0", "0.450 ± 0.000"):
        assert part in out.getvalue(), part
    narrow = io.StringIO()
    Console(file=narrow, width=70).print(demo.results_table(kinds, scores))
    assert narrow.getvalue().count("constraint") == 2  # it is the numbers that fold
    lines = demo.verdict(kinds, scores)
    assert any("±0.1 " in line and "+25.0 points" in line for line in lines)
    assert any("±0.5 " in line and "-0.5 points" in line for line in lines)

    out = io.StringIO()
    single = scores_of({key: values[:1] for key, values in tops.items()})
    Console(file=out, width=120).print(demo.results_table(kinds, single))
    assert "±" not in out.getvalue().replace("hue ±", "")


@pytest.mark.parametrize("n_seeds", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_picture_has_every_bar_at_its_height(n_seeds: int, data: Path, tmp_path: Path) -> None:
    heights = {"CE": 0.25, "CE, both views": 0.5, "constraint": 1.0}
    bars = [
        Bar(label, hue, split, [height] * n_seeds)
        for (label, height), split in product(heights.items(), CAPTIONS)
        for hue in ([0.0] if label == "CE" else [0.1, 0.5])
    ]
    draw(tmp_path / "bias.png", data, bars, 0.99)
    with Image.open(tmp_path / "bias.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    tall = {}
    for label, fill in FILLS.items():
        rgb = [int(fill[i : i + 2], 16) for i in (1, 3, 5)]
        columns = np.all(pixels == rgb, axis=-1).sum(axis=0)
        bar_columns = columns[columns > 50]  # the legend's patches are lower
        assert len(bar_columns) > 6 * 20  # six bars
        tall[label] = np.median(bar_columns)
    assert tall["CE"] / tall["constraint"] == pytest.approx(0.25, abs=0.02)
    assert tall["CE, both views"] / tall["constraint"] == pytest.approx(0.5, abs=0.02)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--seeds", "0"]) == 2
    assert main(["--out", str(tmp_path), "--seeds", "101"]) == 2
    assert main(["--out", str(tmp_path), "--epochs", "0"]) == 2
    assert main(["--out", str(tmp_path), "--digits", str(tmp_path / "none")]) == 2
    assert main(["--bogus"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("fastsc.colormnist_demo: ") for line in lines)
    assert os.listdir(tmp_path) == []


def test_what_draws_is_missed_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["--out", str(tmp_path)]) == 2
    assert "fastsc[eval]" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.timeout(300)
def test_the_whole_demo_in_one_epoch_of_one_arm(
    data: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    constraint = next(arm for arm in demo.arms() if arm.key == "constraint")
    monkeypatch.setattr(demo, "arms", lambda: [constraint])
    monkeypatch.setattr(demo, "verdict", lambda kinds, scores: ["verdict"])  # wants all five
    monkeypatch.setattr(demo, "draw", lambda path, data, bars, correlation: path.touch())
    (tmp_path / "data").symlink_to(data)
    words = ["--out", str(tmp_path), "--digits", str(digits), "--correlation", "0.9"]
    assert main([*words, "--epochs", "1"]) == 0
    printed = capfd.readouterr().out
    assert "220 training digits, 0.9 of them" in printed
    assert "python -m fastsc.train colormnist" in printed
    assert sorted(os.listdir(tmp_path)) == ["bias.png", "data", "results.json", "trained"]
    assert sorted(os.listdir(tmp_path / "trained")) == ["constraint-0"]

    # The demo's measure of the validation folder is the log's own.
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["split"] for row in results] == list(SPLITS)
    log = (tmp_path / "trained" / "constraint-0" / "log.jsonl").read_text().splitlines()
    val = next(line["val"] for line in map(json.loads, reversed(log)) if line["event"] == "epoch")
    score = results[0]
    assert score["top1"] == pytest.approx(val["top1"])
    assert score["ds_relative"] == pytest.approx(val["ds_relative"], rel=1e-3)
    assert score["n"] == val["n"] == 20


def test_a_failing_training_ends_the_demo(
    data: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = ["-c", "import sys; sys.exit('no such thing')"]
    assert demo.train_all([["-c", "pass"], broken]) == 1
    err = capfd.readouterr().err
    assert "no such thing" in err
    assert "ended with status 1" in err
