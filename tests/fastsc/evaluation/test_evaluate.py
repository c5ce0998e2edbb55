"""The command: what it writes, and where it writes to."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsc import evaluate, train
from fastsc.evaluation import progress
from fastsc.pipelines import scan
from fastsc.run.log import read_log
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.calls import asked, figure, mistake, results

OLD = Path(__file__).parents[2] / "old"

pytestmark = pytest.mark.heavy


@pytest.mark.usefixtures("undrawn")
def test_one_call_writes_figures_rows_and_the_page(
    nets: str, few_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(f"{nets}:small", "--data", few_images, "--out", "out") == 0
    out = Path("out")
    assert figure(out, "top1")["n"] == 8  # every labelled image, whatever the budget
    assert figure(out, "ds_relative")["n"] == 8
    assert figure(out, "flips/hue/0.1")["n"] == 4
    assert {row["question"] for row in results(out)["results"]} == {
        "continuity", "neighbours", "gradients", "robustness", "explanations", "shifts",
    }  # fmt: skip
    for question in ("embedding", "transfer", "bias"):
        assert any(row["question"] == question for row in results(out)["left_out"])
    (reason,) = (r["reason"] for r in results(out)["left_out"] if r["question"] == "embedding")
    page = (out / "report.html").read_text()
    assert "</html>" in page
    with np.load(out / figure(out, "top1")["rows"]) as rows:
        assert rows["correct"].mean() == figure(out, "top1")["value"]
        assert rows["path"][0].startswith("apple/")
    said = capsys.readouterr().out
    assert "quick budget, 8 images" in said
    assert f"left out: embedding: {reason}" in said
    assert f"top-1 {figure(out, 'top1')['value']:.1%}" in said
    metadata = results(out)["metadata"]
    assert metadata["split"] == "val"
    assert metadata["index_hash"] == scan(few_images / "val").hash


@pytest.mark.usefixtures("no_page")
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


@pytest.mark.usefixtures("no_page")
def test_a_run_gives_what_it_logged_when_it_was_validated(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
        f"imagenet --pipeline cpu --data {image_folder} --out run --model fastsc:resnet8w8"
        " --resolution 32 --batch-size 16 --epochs 1 --device cpu --precision fp32 --workers 1"
    )
    assert train.main(options.split()) == 0
    (val,) = (line["val"] for line in read_log("run/log.jsonl") if line["event"] == "epoch")
    small = "--images", "2", "--only", "continuity", "--workers", "1"
    assert evaluate.main(["run", "--data", str(image_folder), "--out", "out", *small]) == 0
    for name in ("top1", "ds_relative"):
        assert figure(Path("out"), name)["value"] == pytest.approx(val[name], rel=1e-5)
        assert figure(Path("out"), name)["n"] == val["n"] == 12
    assert figure(Path("out"), "top1")["model"] == "run"


@pytest.mark.usefixtures("no_page")
def test_strengths_are_those_that_a_run_trained_with(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
        f"imagenet --pipeline cpu --data {image_folder} --model fastsc:resnet8w8 --resolution 32"
        " --batch-size 16 --epochs 1 --max-steps 1 --device cpu --precision fp32 --workers 1"
    ).split()
    assert train.main([*options, "--out", "hue", "--strengths", "0", "0", "0", "0.2"]) == 0
    assert train.main([*options, "--out", "usual", "--val", "none"]) == 0
    nothing = "--strengths", "0", "0", "0", "0"
    assert train.main([*options, "--out", "still", "--val", "none", *nothing]) == 0
    (val,) = (line["val"] for line in read_log("hue/log.jsonl") if line["event"] == "epoch")
    small = "--images", "2", "--only", "continuity", "--workers", "1", "--out", "out"
    data = "--data", str(image_folder)
    assert evaluate.main(["hue", *data, *small]) == 0
    assert figure(Path("out"), "ds_relative")["value"] == pytest.approx(
        val["ds_relative"], rel=1e-5
    )
    assert results(Path("out"))["metadata"]["strengths"] == [0, 0, 0, 0.2]
    assert "strengths: 0 0 0 0.2" in capsys.readouterr().out
    names = {row["name"] for row in results(Path("out"))["results"]}
    assert "flips/hue/0.4" in names
    assert not any(name.startswith("flips/brightness") for name in names)
    small = "--images", "2", "--only", "neighbours", "--workers", "1", "--out", "out"
    assert evaluate.main(["hue", "usual", *data, *small]) == 0
    assert results(Path("out"))["metadata"]["strengths"] == [0.4, 0.4, 0.4, 0.1]
    assert "trained with different --strengths" in capsys.readouterr().out
    # A run that trained without perturbation is looked at in other colors all the same.
    assert evaluate.main(["still", *data, *small]) == 0
    assert results(Path("out"))["metadata"]["strengths"] == [0.4, 0.4, 0.4, 0.1]


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_images_without_labels_have_no_top1_and_the_page_says_why(
    nets: str, few_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = Path("flat")
    flat.mkdir()
    for i, path in enumerate(sorted(few_images.rglob("*.jpg"))):
        shutil.copy(path, flat / f"{i}.jpg")
    assert asked(f"{nets}:small", "--data", "flat", "--out", "out") == 0
    names = {row["name"] for row in results(Path("out"))["results"]}
    assert "top1" not in names
    assert {"ds_relative", "gradient_cosine"} <= names
    left_out = {r["question"]: r["reason"] for r in results(Path("out"))["left_out"]}
    assert {"top-1", "neighbours"} <= set(left_out)
    assert left_out["top-1"] in capsys.readouterr().out


@pytest.mark.usefixtures("no_page")
def test_a_class_count_that_does_not_fit_is_named_and_a_class_map_mends_it(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{nets}:seven", "--data", image_folder, "--out", "out", "--images", "1"
    command = *command, "--only", "continuity"
    assert asked(*command) == 0
    (line,) = (row for row in capsys.readouterr().out.splitlines() if "--class-map" in row)
    assert "4 classes" in line
    assert "7 outputs" in line
    Path("map.json").write_text(json.dumps({"apple": 6, "boat": 0, "cloud": 1, "door": 2}))
    assert asked(*command, "--class-map", "map.json") == 0
    with np.load(Path("out") / figure(Path("out"), "top1")["rows"]) as rows:
        assert rows["label"].tolist() == [6] * 3 + [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.usefixtures("undrawn")  # a name of a class is in none of these figures
def test_a_class_folder_that_is_a_script_is_text(nets: str) -> None:
    evil = "<script>alert(1)</script>".replace("/", "∕")  # a folder's name has no slash
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    pixels = {evil: tiny.noise(rng, 3), "<img src=x onerror=alert(1)>": tiny.noise(rng, 3)}
    tiny.loader(Path("data"), pixels).close()
    assert asked(f"{nets}:small", "--data", "data", "--out", "out", "--images", "2") == 0
    page = Path("out/report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


# --- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much", ""])
def test_budgets_that_are_none(
    value: str, nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{nets}:small", "--data", image_folder, f"--memory-budget={value}"
    assert f"{value!r} is not a number above 0" in mistake(capsys, *command)


@pytest.mark.usefixtures("no_page")
def test_a_log_says_how_far_it_is(
    nets: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    only = "--only", "continuity", "gradients", "--images", "1"
    assert asked(f"{nets}:small", "--data", image_folder, "--out", "out", *only) == 0
    said = capsys.readouterr().out.splitlines()
    shape = r"nets_\S+:small: (\w+): [\d,]+ of about [\d,]+ passes; \d+ % of all after .* left"
    told = [found[1] for row in said if (found := re.fullmatch(shape, row))]
    assert list(dict.fromkeys(told)) == ["continuity", "gradients", "sliders"]


@pytest.mark.usefixtures("no_page")
def test_an_output_that_takes_nothing_more_ends_nothing(
    nets: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        only = "--out", "out", "--only", "continuity", "--images", "1"
        assert asked(f"{nets}:small", "--data", image_folder, *only) == 0
    assert figure(Path("out"), "top1")["n"] == 12
