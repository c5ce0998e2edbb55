"""The command: what it writes, what it does not do twice, and what it says to a mistake."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsc import evaluate, train
from fastsc.evaluation import flip_radius
from fastsc.evaluation.views import Viewer
from fastsc.pipelines import scan
from fastsc.runlog import read
from tests.fastsc.evaluation import tiny

NETS = """
import torch
from torch import nn
from fastsc.smallnets import SmallResNet

def small(seed=0, n=4):
    torch.manual_seed(seed)
    return SmallResNet(8, n)

def other():
    return small(1)

def nan():
    net = small()
    net.layer1.conv1.weight.data[0] = float("nan")
    return net

def seven():
    return small(0, 7)

def maps():
    return nn.Conv2d(3, 4, 3)
"""
FAST = ("--resolution", "32", "--resize", "36", "--images", "4", "--workers", "1")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of networks, importable from the current directory, where everything is written."""
    name = f"nets_{tmp_path.name}"  # each test's own: Python keeps a module that it has imported
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return name


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def figure(out: Path, name: str, model: str | None = None) -> dict[str, Any]:
    (row,) = (
        r for r in results(out)["results"] if r["name"] == name and model in (None, r["model"])
    )
    return row


def asked(*words: object) -> int:
    return evaluate.main([str(word) for word in (*words, *FAST)])


def test_one_call_writes_figures_rows_and_the_page(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(f"{nets}:small", "--data", image_folder, "--out", "out") == 0
    out = Path("out")
    assert figure(out, "top1")["n"] == 12  # every labelled image, whatever the budget
    assert figure(out, "ds_relative")["n"] == 12
    assert figure(out, "flips/hue/0.1")["n"] == 4
    assert {row["question"] for row in results(out)["results"]} == {
        "continuity", "neighbours", "gradients",
    }  # fmt: skip
    (reason,) = (r["reason"] for r in results(out)["left_out"] if r["question"] == "embedding")
    page = (out / "report.html").read_text()
    assert "</html>" in page
    with np.load(out / figure(out, "top1")["rows"]) as rows:
        assert rows["correct"].mean() == figure(out, "top1")["value"]
        assert rows["path"][0].startswith("apple/")
    said = capsys.readouterr().out
    assert "quick budget, 12 images" in said
    assert f"left out: embedding: {reason}" in said
    assert f"top-1 {figure(out, 'top1')['value']:.1%}" in said
    metadata = results(out)["metadata"]
    assert metadata["split"] == "val"
    assert metadata["index_hash"] == scan(image_folder / "val").hash


def test_a_second_call_looks_at_no_image(
    nets: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"{nets}:small", "--data", image_folder, "--out", "out"
    assert asked(*command) == 0
    first = results(Path("out"))

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Viewer, "respond", refuse)
    assert asked(*command) == 0
    assert results(Path("out"))["results"] == first["results"]


def test_an_interrupted_call_goes_on_where_it_was(
    nets: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"{nets}:small", "--data", image_folder, "--out", "out", "--only", "continuity"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flip_radius, "_walk", interrupt)
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
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spent, respond = 0, Viewer.respond

    def count(self: Viewer, pixels: Any, factors: Any = None) -> Any:
        nonlocal spent
        spent += len(pixels)
        return respond(self, pixels, factors)

    monkeypatch.setattr(Viewer, "respond", count)
    assert asked(f"{nets}:small", "--data", image_folder, "--out", "out", "--only", question) == 0
    (announced,) = re.findall(r"about ([\d,]+) passes", capsys.readouterr().out)
    assert spent / 2 < int(announced.replace(",", "")) < 2 * spent


def test_models_are_compared_over_the_same_images(nets: str, image_folder: Path) -> None:
    two = f"{nets}:small", f"{nets}:other"
    options = "--data", image_folder, "--out", "out", "--only", "continuity", "--names", "A", "B"
    assert asked(*two, *options) == 0
    out = Path("out")
    compared = {c["name"]: c for c in results(out)["comparisons"]}
    assert {(c["model"], c["against"]) for c in compared.values()} == {("B", "A")}
    for name in ("top1", "ds_relative", "flips/together/1", "layers/layer2"):
        difference = figure(out, name, "B")["value"] - figure(out, name, "A")["value"]
        assert compared[name]["value"] == pytest.approx(difference)
        assert compared[name]["low"] <= compared[name]["value"] <= compared[name]["high"]
        assert 0 <= compared[name]["p"] <= 1
    indices = []
    for model in "AB":
        with np.load(out / figure(out, "flips/hue/0.1", model)["rows"]) as rows:
            indices.append(rows["index"].tolist())
    assert indices[0] == indices[1]
    page = (out / "report.html").read_text()
    assert "A" in page
    assert "B" in page


def test_a_run_gives_what_it_logged_when_it_was_validated(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
        f"imagenet --pipeline cpu --data {image_folder} --out run --model fastsc:resnet8w8"
        " --resolution 32 --batch-size 16 --epochs 1 --device cpu --precision fp32 --workers 1"
    )
    assert train.main(options.split()) == 0
    (val,) = (line["val"] for line in read("run/log.jsonl") if line["event"] == "epoch")
    small = "--images", "2", "--only", "continuity", "--workers", "1"
    assert evaluate.main(["run", "--data", str(image_folder), "--out", "out", *small]) == 0
    for name in ("top1", "ds_relative"):
        assert figure(Path("out"), name)["value"] == pytest.approx(val[name], rel=1e-5)
        assert figure(Path("out"), name)["n"] == val["n"] == 12
    assert figure(Path("out"), "top1")["model"] == "run"


# --- labels --------------------------------------------------------------------------------------


def test_images_without_labels_have_no_top1_and_the_page_says_why(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = Path("flat")
    flat.mkdir()
    for i, path in enumerate(sorted((image_folder / "val").rglob("*.jpg"))):
        shutil.copy(path, flat / f"{i}.jpg")
    assert asked(f"{nets}:small", "--data", "flat", "--out", "out") == 0
    names = {row["name"] for row in results(Path("out"))["results"]}
    assert "top1" not in names
    assert {"ds_relative", "gradient_cosine"} <= names
    left_out = {r["question"]: r["reason"] for r in results(Path("out"))["left_out"]}
    assert {"top-1", "neighbours"} <= set(left_out)
    assert left_out["top-1"] in capsys.readouterr().out


def test_a_class_count_that_does_not_fit_is_named_and_a_class_map_mends_it(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{nets}:seven", "--data", image_folder, "--out", "out", "--only", "continuity"
    assert asked(*command) == 0
    (line,) = (row for row in capsys.readouterr().out.splitlines() if "--class-map" in row)
    assert "4 classes" in line
    assert "7 outputs" in line
    Path("map.json").write_text(json.dumps({"apple": 6, "boat": 0, "cloud": 1, "door": 2}))
    assert asked(*command, "--class-map", "map.json") == 0
    with np.load(Path("out") / figure(Path("out"), "top1")["rows"]) as rows:
        assert rows["label"].tolist() == [6] * 3 + [0] * 3 + [1] * 3 + [2] * 3


def test_a_class_folder_that_is_a_script_is_text(nets: str) -> None:
    evil = "<script>alert(1)</script>".replace("/", "∕")  # a folder's name has no slash
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    pixels = {evil: tiny.noise(rng, 3), "<img src=x onerror=alert(1)>": tiny.noise(rng, 3)}
    tiny.loader(Path("data"), pixels).close()
    small = "--resolution", "8", "--resize", "8"
    assert asked(f"{nets}:small", "--data", "data", "--out", "out", *small) == 0
    page = Path("out/report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


# --- mistakes ------------------------------------------------------------------------------------


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a call that ends with status 2 and writes nothing."""
    assert asked(*words, "--out", "out") == 2
    found = capsys.readouterr().err
    assert found.startswith("fastsc.evaluate: ")
    assert found.count("\n") == 1
    assert not Path("out").exists()
    return found


def test_models_that_cannot_be_asked(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "--data", image_folder
    assert "weights are not finite (layer1.conv1.weight)" in mistake(capsys, f"{nets}:nan", *data)
    assert "is not a classifier" in mistake(capsys, f"{nets}:maps", *data)
    assert "no such folder or file" in mistake(capsys, "runs/none", *data)
    assert "0 classes" not in mistake(capsys, f"{nets}:absent", *data)
    one = mistake(capsys, f"{nets}:small", f"{nets}:small", *data)
    assert "tell them apart with --names A B" in one
    assert "1 names for 2 models" in mistake(capsys, "a", "b", "--names", "x", *data)
    files = "--weights", "a.pt", "--weights", "b.pt"
    assert "2 files for 1 models" in mistake(capsys, "timm:resnet10t", *files, *data)


def test_data_and_questions_that_do_not_fit(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{nets}:small"
    assert "no such folder" in mistake(capsys, model, "--data", "nowhere")
    one_each = Path("one")
    for name in ("a", "b"):
        (one_each / name).mkdir(parents=True)
        shutil.copy(next((image_folder / "val").rglob("*.jpg")), one_each / name)
    asked_for = "--only", "gradients", "neighbours"
    said = mistake(capsys, model, "--data", one_each, *asked_for)
    assert "neighbours: the data has one image a class" in said
    assert "invalid choice: 'nothing'" in mistake(
        capsys, model, "--data", "one", "--only", "nothing"
    )
    assert "no images of class nobody" in mistake(
        capsys, model, "--data", image_folder, "--only", "embedding", "--class", "nobody"
    )


def test_a_broken_image_is_named_or_left_out(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder / "val", "data")
    broken = Path("data/cloud/01.jpg")
    # Its last bytes stay: what is cut out of the middle shows in decoding alone.
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300] + whole[-2:])
    command = f"{nets}:small", "--data", "data", "--only", "continuity"
    assert asked(*command, "--out", "out") == 2
    assert str(broken) in capsys.readouterr().err
    assert asked(*command, "--out", "out", "--on-bad-image", "skip") == 0
    assert figure(Path("out"), "top1")["n"] == 11
    assert results(Path("out"))["metadata"]["images_left_out"] == 1
