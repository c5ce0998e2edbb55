"""The command: what it says to a mistake, and of what cannot be asked."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image

from fastsc.evaluation.models.sources import Source
from fastsc.evaluation.run import _strengths
from tests.fastsc.evaluation.calls import asked, figure, mistake, results

OLD = Path(__file__).parents[2] / "old"

pytestmark = pytest.mark.heavy


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
    said = mistake(capsys, model, "--data", image_folder, "--label-key", "species")
    assert f"--label-key names a field beside the images of tars, and {image_folder}" in said
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
