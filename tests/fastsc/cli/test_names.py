"""Names that are no UTF-8, as old archives have them: of classes, files, data and runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsc import evaluate, prepare, replay, reproduce, train
from fastsc.cli.packages import installed
from fastsc.config.recipes import load_recipe
from fastsc.pipelines import cache, scan
from fastsc.run.checkpoint import load_safetensors
from tests.fastsc.runs import events

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

NAME = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\udce9"
SMALL = [
    "--model", "fastsc:resnet8w8", "--batch-size", "8", "--device", "cpu", "--precision", "fp32",
    "--log-every", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 8 images a part, one of them and all its files named so."""
    root = tmp_path_factory.mktemp("names") / NAME
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in (NAME, "plain"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                with open(folder / f"{name}-{i}.png", "wb") as file:
                    Image.fromarray(pixels).save(file, "png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for an epoch, and for another one as its own resume."""
    out = tmp_path_factory.mktemp("runs") / NAME
    words = ["cifar100", *SMALL, "--data", str(data), "--out", str(out)]
    assert train.main([*words, "--epochs", "1"]) == 0
    assert train.main([*words, "--epochs", "2", "--resume"]) == 0
    return out


def test_training_and_resume(run: Path, data: Path) -> None:
    assert [event["step"] for event in events(run, "step")] == [1, 2, 3, 4]
    (header,) = events(run, "header")
    assert (header["data"], header["out"]) == (str(data), str(run))
    config = load_recipe(str(run / "config.yaml"))
    assert (config.data.data, config.run.out) == (str(data), str(run))
    assert load_safetensors(run / "weights.safetensors")[1]["classes"] == [NAME, "plain"]


def test_the_index_is_cached(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(data / "train")
    monkeypatch.setattr(cache.Table, "of", None)  # what a new scan would call
    again = scan(data / "train")
    assert again.paths == first.paths
    assert NAME in again.classes


def test_a_broken_file_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "train" / NAME / f"{NAME}-1.png").write_bytes(b"no image")
    words = ["cifar100", *SMALL, "--data", str(copy), "--out", str(tmp_path / "run")]
    assert train.main([*words, "--max-steps", "1"]) == 2
    assert train.main([*words, "--max-steps", "1", "--on-bad-image", "skip"]) == 0
    (bad,) = events(tmp_path / "run", "bad_image")
    assert Path(bad["path"]).exists()


@pytest.mark.usefixtures("undrawn")
def test_evaluation(run: Path, data: Path, tmp_path: Path) -> None:
    """Right answers are counted: the run's classes are the data's. The page shows the name."""
    out = tmp_path / NAME
    words = [str(run), "--data", str(data), "--out", str(out), "--names", NAME]
    words += ["--only", "continuity", "--images", "4", "--device", "cpu"]
    assert evaluate.main(words) == 0
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert {row["model"] for row in results["results"]} == {SHOWN}
    assert "top1" in {row["name"] for row in results["results"]}
    page = (out / "report.html").read_text("utf-8")
    assert SHOWN in page
    paths = np.load(next(out.glob("rows/*/continuity-*.npz")))["path"].tolist()
    assert all((data / "test" / path).exists() for path in paths)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_question(run: Path, data: Path, tmp_path: Path) -> None:
    words = [str(run), "--data", str(data), "--out", str(tmp_path), "--class", NAME]
    assert evaluate.main([*words, "--transfer-data", str(data), "--device", "cpu"]) == 0
    assert f"images of {SHOWN}" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_weights_of_a_file_that_is_named_so(run: Path, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / f"{NAME}.safetensors"
    shutil.copy(run / "weights.safetensors", weights)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--only", "continuity"]
    assert evaluate.main([str(weights), *words, "--images", "4", "--device", "cpu"]) == 0


def test_replay(run: Path) -> None:
    assert replay.main([str(run), "--step", "3"]) == 0
    with np.load(run / "replay" / "step-00000003" / "batch.npz") as batch:
        paths = batch["paths"].tolist()
        assert any(path.startswith(f"{NAME}/{NAME}") for path in paths)
        assert json.loads(str(batch["metadata"]))["classes"] == [NAME, "plain"]


@pytest.mark.skipif(not installed("ffcv"), reason="FFCV is not installed")
def test_ffcv_datasets(data: Path, tmp_path: Path) -> None:
    betons = tmp_path / NAME
    assert prepare.main(["beton", "--data", str(data), "--out", str(betons)]) == 0
    words = ["cifar100", *SMALL, "--data", str(betons), "--pipeline", "ffcv", "--max-steps", "1"]
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 0
    metadata = load_safetensors(tmp_path / "run" / "weights.safetensors")[1]
    assert metadata["classes"] == [NAME, "plain"]


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_what_takes_text_alone_is_refused_before_the_first_step(
    sink: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    out = tmp_path / NAME
    words = ["cifar100", *SMALL, "--data", str(data), "--out", str(out), f"--{sink}"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "UTF-8" in line
    assert not out.exists()


def test_a_study(data: Path, tmp_path: Path) -> None:
    words = ["cifar100", "--data", str(data), "--out", str(tmp_path / NAME), "--dry-run"]
    assert reproduce.main(words) == 0


@pytest.mark.parametrize(
    "words",
    [["cifar100", f"--{NAME}"], [NAME], ["cifar100", "--data", NAME], ["--model", NAME]],
)
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (train, evaluate, prepare, replay, reproduce):
        assert command.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        line.encode()
