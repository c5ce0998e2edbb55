"""The command: what it writes, what it does not do twice, and what it says to a mistake."""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from fastsc import evaluate, train
from fastsc.evaluation import progress
from fastsc.evaluation.models.sources import Source
from fastsc.evaluation.run import _strengths
from fastsc.pipelines import scan
from fastsc.run.log import read_log
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.calls import asked, figure, results

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


def test_strengths_of_several_runs_are_said() -> None:
    ours, stronger = (0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2)
    for trained, wanted, lines in (
        ([ours, ours], ours, []),
        ([stronger, stronger], stronger, ["strengths: 0.8 0.8 0.8 0.2"]),
        ([None, stronger], stronger, ["strengths: 0.8 0.8 0.8 0.2"]),
        ([ours, stronger], ours, [
            "the runs were trained with different --strengths; these are the default's",
            "strengths: 0.4 0.4 0.4 0.1",
        ]),
    ):  # fmt: skip
        sources = [cast("Source", SimpleNamespace(strengths=strengths)) for strengths in trained]
        said: list[str] = []
        assert _strengths(sources, said.append) == wanted
        assert said == lines


@pytest.mark.usefixtures("no_page")
def test_a_weights_key_is_of_the_models_that_take_a_file(nets: str, few_images: Path) -> None:
    more = "--data", few_images, "--only", "continuity", "--images", "2"
    assert asked(f"{nets}:other", *more, "--out", "alone") == 0
    module = importlib.import_module(nets)
    torch.save({"one": module.other().state_dict(), "two": module.nan().state_dict()}, "w.pt")
    named = "--names", "run", "net", "--weights", "w.pt", "--weights-key", "one"
    assert asked(OLD / "weights.safetensors", f"{nets}:small", *named, *more, "--out", "out") == 0
    alone = figure(Path("alone"), "ds_relative")["value"]
    assert figure(Path("out"), "ds_relative", "net")["value"] == alone


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


def test_numbers_devices_and_folders_that_cannot_be(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{nets}:small", "--data", image_folder
    assert "'-5' is not a whole number" in mistake(capsys, *command, "--seed", "-5")
    assert "2**64 - 1" in mistake(capsys, *command, "--seed", str(2**64))
    for amount in ("0", "robustness=0", "robustness="):
        assert "is not a whole number" in mistake(capsys, *command, "--images", amount)
    said = mistake(capsys, *command, "--images", "robustnes=5")
    assert "--only does not ask that question" in mistake(
        capsys, *command, "--only", "shifts", "--images", "robustness=5"
    )
    assert "'robustnes' is no question that takes a number of images; did you mean" in said
    assert "--device foo: must be" in mistake(capsys, *command, "--device", "foo")
    assert "--names: an empty name" in mistake(capsys, *command, "--names", " ")
    shutil.copytree(image_folder / "val", "data/val")
    for out in ("data/val", "data/val/out"):
        assert asked(f"{nets}:small", "--data", "data", "--out", out) == 2
        assert "lies in" in capsys.readouterr().err
    assert len(list(Path("data/val").iterdir())) == 4


@pytest.mark.usefixtures("no_page")
def test_what_only_asks_for_must_be_had_of_every_model(
    nets: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"{nets}:blind", "--data", image_folder, "--out", "out"
    assert asked(*command, "--only", "gradients") == 2
    assert "lets no gradient through" in capsys.readouterr().err
    assert not Path("out/results.json").exists()
    some = "--only", "gradients", "neighbours", "--where-possible"
    assert asked(*command, *some) == 0
    assert {row["question"] for row in results(Path("out"))["results"]} == {"neighbours"}
    assert [row["question"] for row in results(Path("out"))["left_out"]] == ["gradients"]
    monkeypatch.setattr("fastsc.evaluation.run.QUESTIONS", ("gradients", "neighbours"))
    assert asked(*command) == 0
    reasons = {row["question"]: row["reason"] for row in results(Path("out"))["left_out"]}
    assert "lets no gradient through" in reasons["gradients"]


@pytest.mark.usefixtures("no_page")
def test_what_one_model_cannot_is_asked_of_the_other(
    nets: str, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.evaluation.run.QUESTIONS", ("neighbours", "shifts"))
    two = f"{nets}:seven", f"{nets}:small"  # of which the first has no label for these folders
    only = "--data", few_images, "--out", "out"
    assert asked(*two, *only) == 0
    found = {(row["model"], row["question"]) for row in results(Path("out"))["results"]}
    assert (two[1], "shifts") in found
    assert (two[0], "shifts") not in found
    left_out = {(row["model"], row["question"]) for row in results(Path("out"))["left_out"]}
    assert (two[0], "shifts") in left_out
    assert (two[1], "shifts") not in left_out
    shutil.rmtree("out")
    assert asked(*two, *only, "--only", "neighbours", "shifts") == 2
    assert not Path("out").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("what", ["network", pytest.param("images", marks=pytest.mark.slow)])
def test_where_nothing_moves_all_that_can_be_said_is_said(
    what: str,
    nets: str,
    few_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """A collapsed network, and images that are all black."""
    data, name = few_images, "collapsed"
    if what == "images":
        data, name = Path(shutil.copytree(few_images, tmp_path / "black")), "small"
        for file in (data / "val").rglob("*.jpg"):
            Image.new("RGB", Image.open(file).size).save(file)
    out = tmp_path / what
    words = (f"{nets}:{name}", "--data", data, "--where-possible", "--images", "2")
    assert asked(*words, "--out", out) == 0
    said = capsys.readouterr().out
    assert "ds_relative undefined: all 8 images have one representation" in said
    assert "nan" not in said
    assert figure(out, "ds_relative")["value"] is None
    assert (out / "report.html").stat().st_size > 0
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.usefixtures("no_page")
def test_a_question_that_is_named_twice_is_asked_once(nets: str, image_folder: Path) -> None:
    twice = "--only", "neighbours", "neighbours"
    assert asked(f"{nets}:small", "--data", image_folder, "--out", "out", *twice) == 0
    assert results(Path("out"))["metadata"]["questions"] == ["neighbours"]


@pytest.mark.usefixtures("no_page")
def test_a_broken_image_is_named_or_left_out(
    nets: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder / "val", "data")
    broken = Path("data/cloud/01.jpg")
    # Its last bytes stay: what is cut out of the middle shows in decoding alone.
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300] + whole[-2:])
    command = f"{nets}:small", "--data", "data", "--only", "continuity", "--images", "1"
    assert asked(*command, "--out", "out") == 2
    assert str(broken) in capsys.readouterr().err
    assert asked(*command, "--out", "out", "--on-bad-image", "skip") == 0
    assert figure(Path("out"), "top1")["n"] == 11
    assert results(Path("out"))["metadata"]["images_left_out"] == 1


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
