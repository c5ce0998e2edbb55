"""The command computes nothing twice, and nothing that a figure depends on is forgotten."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastsc.evaluation.questions.continuity import flip_radius
from fastsc.evaluation.views import Viewer
from fastsc.pipelines.decode import pick
from tests.fastsc.evaluation.calls import asked, figure, figures, results

pytestmark = [pytest.mark.usefixtures("no_page"), pytest.mark.heavy]


def test_an_interrupted_call_goes_on_where_it_was(
    nets: str,
    few_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"{nets}:small", "--data", few_images, "--out", "out", "--images", "1"
    command = *command, "--only", "continuity"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flip_radius, "walk", interrupt)
        assert asked(*command) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("out/results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in Path("out/cache").iterdir()}
    assert len(done) == 6  # pairs and five curves
    assert asked(*command) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(Path("out/cache").iterdir())) == 6 + 4 + 1 + 3


@pytest.mark.parametrize("question", ["continuity", "neighbours"])
def test_the_announced_cost_is_about_what_is_spent(
    question: str,
    nets: str,
    few_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spent, respond = 0, Viewer.respond

    def count(self: Viewer, pixels: Any, factors: Any = None) -> Any:
        nonlocal spent
        spent += len(pixels)
        return respond(self, pixels, factors)

    monkeypatch.setattr(Viewer, "respond", count)
    assert asked(f"{nets}:small", "--data", few_images, "--out", "out", "--only", question) == 0
    (announced,) = re.findall(r"about ([\d,]+) passes", capsys.readouterr().out)
    assert spent / 2 < int(announced.replace(",", "")) < 2 * spent


def recomputed(*words: object) -> bool:
    """Whether a call of `neighbours` alone had to look at images."""
    looked, respond = [], Viewer.respond

    def count(self: Viewer, pixels: Any, factors: Any = None) -> Any:
        looked.append(len(pixels))
        return respond(self, pixels, factors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Viewer, "respond", count)
        assert asked(*words, "--out", "out", "--only", "neighbours") == 0
    return bool(looked)


def test_what_a_figure_depends_on_is_in_the_caches_key(nets: str, few_images: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(few_images / "val", name)
    os.utime("two/apple/00.jpg")
    model, data = f"{nets}:small", ("--data", "one")
    assert recomputed(model, *data)
    assert not recomputed(model, *data)
    others = (
        (f"{nets}:other", *data),
        (model, "--data", "two"),  # one of its files was written later
        (model, *data, "--seed", "1"),
        (model, *data, "--strengths", ".4", ".4", ".4", ".2"),
        (model, *data, "--precision", "bf16"),
        (model, *data, "--mean", ".5", ".5", ".5"),
        (model, *data, "--pipeline", "memory"),
    )
    for other in others:
        assert recomputed(*other), other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsc.pipelines.cpu.pick", lambda: pick("pil"))
        assert recomputed(model, *data)
    # What is right matters where labels do.
    Path("map.json").write_text(json.dumps({"apple": 1, "boat": 0, "cloud": 2, "door": 3}))
    shifts = model, *data, "--out", "out", "--only", "shifts"
    assert asked(*shifts) == 0
    first = figure(Path("out"), "accuracy/clean")["value"]
    assert asked(*shifts, "--class-map", "map.json") == 0
    assert figure(Path("out"), "accuracy/clean")["value"] != first
    # A picture that is replaced by another of its size, under its name.
    path = Path("one/apple/00.jpg")
    n_bytes = path.stat().st_size
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, quality=70)
    missing = n_bytes - path.stat().st_size
    assert missing >= 4
    data_of = path.read_bytes()  # filled up by a comment, behind the two bytes it begins with
    comment = b"\xff\xfe" + (missing - 2).to_bytes(2, "big") + bytes(missing - 4)
    path.write_bytes(data_of[:2] + comment + data_of[2:])
    assert path.stat().st_size == n_bytes
    assert recomputed(model, *data)
    assert not recomputed(model, *data)


@pytest.mark.slow  # of each question its own tests say so
def test_a_second_call_looks_at_no_image_and_the_memory_budget_changes_no_figure(
    nets: str,
    few_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"{nets}:smooth", "--data", few_images, "--images", "2"
    assert asked(*command, "--out", "large", "--memory-budget", "1000") == 0
    assert "--memory-budget" not in capsys.readouterr().out
    assert asked(*command, "--out", "small", "--memory-budget", "1e-3") == 0
    said = [row for row in capsys.readouterr().out.splitlines() if "--memory-budget" in row]
    assert len(said) == 1
    assert "--memory-budget 0.001 is too small" in said[0]
    expected = pytest.approx(figures(Path("large")), rel=1e-4, abs=1e-5, nan_ok=True)
    assert figures(Path("small")) == expected

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    # What one budget has computed another finds.
    first = results(Path("small"))["results"]
    monkeypatch.setattr(Viewer, "respond", refuse)
    assert asked(*command, "--out", "small", "--memory-budget", "1000") == 0
    assert results(Path("small"))["results"] == first


def test_fine_tuning_keeps_its_batch_and_says_so(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = "--transfer-data", image_folder, "--fine-tune", "--only", "transfer"
    command = f"{nets}:small", "--data", image_folder, *transfer
    assert asked(*command, "--out", "large", "--memory-budget", "1000") == 0
    assert "fine-tuning" not in capsys.readouterr().out
    assert asked(*command, "--out", "small", "--memory-budget", "1e-3") == 0
    assert "fine-tuning keeps its batches of 64" in capsys.readouterr().out
    expected = pytest.approx(figures(Path("large")), rel=1e-4, abs=1e-5, nan_ok=True)
    assert figures(Path("small")) == expected
