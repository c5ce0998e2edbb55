"""What an earlier fastsc left behind goes on: a run in mid-epoch, a log, an evaluation, a record.

tests/old/ holds what commit e8cf8d9 wrote about the images of tests/old/images.py, and nothing in
it is ever made anew. `run` is a training that died behind the checkpoint of step 14, in its fourth
epoch of four steps; `after.jsonl` and `weights.safetensors` are what the same training came to
where it lived; `results.json` is an evaluation of that; `records` holds the one run of the study
`study.yaml`. The commands stand in `run/log.jsonl`, `results.json` and the record. Later versions
may say more than these files do, and nothing else.

What does not depend on how a CPU rounds is compared exactly. Two steps of training and a float32
forward pass do depend on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsc import evaluate, replay, reproduce, train
from fastsc.kernels import pair_view
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.run.checkpoint import load_newest, load_safetensors
from tests.old.images import write_images

OLD = Path(__file__).parent / "old"
CHECKPOINT = OLD / "run" / "checkpoints" / "step-00000014.pt"
ROUNDING = {"rtol": 1e-3, "atol": 1e-5}  # of another CPU

# sha256, first 16 digits, of what `replay --step 13` wrote into batch.npz.
BATCH = {
    "clean": "5f7acc08a0aa4b46",
    "target": "01d0fabd251fcbbe",
    "index": "37d4a2f1acf2e7d8",
    "planned": "37d4a2f1acf2e7d8",
    "boxes": "fecf429a49053586",
    "shifts": "66687aadf862bd77",
    "flips": "52a5c4a10657220c",
    "factors": "874a68298fe317a0",
    "paths": "cdc9e833aaf5f005",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("old") / "images")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def events(path: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [line for line in lines if line["event"] in kinds]


def test_a_run_in_mid_epoch_is_gone_on_with(images: Path, run: Path) -> None:
    before = events(run / "log.jsonl", "step", "epoch")
    words = [str(run / "config.yaml"), "--data", str(images), "--out", str(run), "--resume"]
    assert train.main(words) == 0
    (resume,) = events(run / "log.jsonl", "resume")
    assert (resume["checkpoint"], resume["epoch"]) == ("step-00000014.pt", 3)
    assert resume["exact_decode"], "as it began, before there was another way"

    found, wanted = events(run / "log.jsonl", "step", "epoch"), events(OLD / "after.jsonl", "step")
    assert found[: len(before)] == before
    steps = [event for event in found[len(before) :] if event["event"] == "step"]
    assert len(steps) == len(wanted)
    for event, old in zip(steps, wanted, strict=True):
        assert (event["step"], event["epoch"], event["lr"]) == (
            old["step"],
            old["epoch"],
            old["lr"],
        )
        assert event["alpha"] == old["alpha"]  # the multiplier's, out of the checkpoint
        assert event.keys() >= old.keys()
        for name in old.keys() - {"event", "pairs_per_s", "loader_wait"}:
            assert event[name] == pytest.approx(old[name], rel=1e-3), name
    (epoch,), (old_epoch,) = found[-1:], events(OLD / "after.jsonl", "epoch")
    assert epoch["val"] == pytest.approx(old_epoch["val"], rel=1e-3)

    (weights, metadata), (old_weights, old_metadata) = (
        load_safetensors(folder / "weights.safetensors") for folder in (run, OLD)
    )
    assert metadata.items() >= old_metadata.items()
    assert list(weights) == list(old_weights)
    for name, value in weights.items():
        torch.testing.assert_close(value, old_weights[name], **ROUNDING)


def test_a_checkpoint_that_is_loaded_and_saved_is_the_same(images: Path, run: Path) -> None:
    saved, bytes_before = load_newest(run / "checkpoints"), CHECKPOINT.read_bytes()
    assert saved is not None
    words = [str(run / "config.yaml"), "--data", str(images), "--out", str(run), "--resume"]
    assert train.main([*words, "--max-steps", "14"]) == 0
    again = load_newest(run / "checkpoints")
    assert again is not None
    assert again.path.name == CHECKPOINT.name
    assert again.path.read_bytes() != bytes_before, "it was written again"
    changed = {"validated_step", "best", "config"}  # by the end that --max-steps makes
    assert again.state.keys() >= saved.state.keys()
    for name in saved.state.keys() - changed:
        assert_same(again.state[name], saved.state[name], name)


def assert_same(found: Any, wanted: Any, where: str) -> None:
    """Bit for bit, in any depth."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted), where
        for i, value in enumerate(wanted):
            assert_same(found[i], value, f"{where}[{i}]")
    else:
        assert found == wanted, where


def test_a_past_step_is_replayed(images: Path, run: Path, tmp_path: Path) -> None:
    words = [str(run), "--step", "13", "--data", str(images), "--out", str(tmp_path / "out")]
    assert replay.main(words) == 0
    with np.load(tmp_path / "out" / "batch.npz") as file:
        found = dict(file)
    metadata = json.loads(str(found.pop("metadata")))
    assert metadata["notes"] == []
    assert metadata["index_hash"] == events(run / "log.jsonl", "header")[0]["index_hash"]
    std, mean = (np.array(x)[:, None, None] for x in (IMAGENET_STD, IMAGENET_MEAN))
    moved = found.pop("perturbed")
    found["clean"] = ((found["clean"] * std + mean) * 255).round().astype(np.uint8)
    digests = {name: digest(array) for name, array in found.items()}
    assert digests.items() >= BATCH.items()

    clean_u8, factors = torch.from_numpy(found["clean"]), torch.from_numpy(found["factors"])
    rgb = clean_u8.permute(0, 2, 3, 1).contiguous()
    _, expected = pair_view(rgb, factors, IMAGENET_MEAN, IMAGENET_STD, impl="reference")
    torch.testing.assert_close(torch.from_numpy(moved), expected, rtol=0, atol=1 / 255 / 0.224)


def digest(array: np.ndarray) -> str:
    data = repr(array.tolist()).encode() if array.dtype.kind == "U" else array.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.heavy
@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_finds_the_same_figures(images: Path, tmp_path: Path) -> None:
    words = [
        str(OLD / "weights.safetensors"),
        "--data",
        str(images),
        "--out",
        str(tmp_path / "out"),
    ]
    more = ["--only", "continuity", "--images", "8", "--names", "run"]
    assert evaluate.main([*words, *more]) == 0
    found, wanted = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", OLD)
    )
    assert found["metadata"].keys() >= wanted["metadata"].keys()
    for name in ("split", "images", "labelled", "index_hash", "sizes", "strengths", "interval"):
        assert found["metadata"][name] == wanted["metadata"][name], name
    rows = {(row["model"], row["question"], row["name"]): row for row in found["results"]}
    for old in wanted["results"]:
        row = rows[old["model"], old["question"], old["name"]]
        assert row.keys() >= old.keys()
        ends = old["low"], old["high"]
        length = 0.0 if None in ends else ends[1] - ends[0]
        for key, value in old.items():
            if key == "value" and value is not None:
                assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-6), old["name"]
            elif key in ("low", "high") and value is not None:
                # An end near 0 has no scale but the interval's. Of 8 images some resamples are the
                # images themselves, and the last bit of their mean, a machine's own, moves it.
                close = pytest.approx(value, rel=1e-3, abs=max(1e-6, 1e-3 * length))
                assert row[key] == close, old["name"]
            else:
                assert row[key] == value, old["name"]


def test_a_record_is_known_as_done(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(OLD / "study.yaml"), "--data", str(images), "--out", str(tmp_path / "out")]
    assert reproduce.main([*words, "--known", str(OLD / "records")]) == 0
    assert "1 runs, 1 of them done already" in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()
