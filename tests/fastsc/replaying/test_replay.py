"""Replays against batches that a training was seen to take, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build, keyed, scan
from fastsc.replay import main
from fastsc.train import main as train
from fastsc.training.step import Step
from tests.fastsc.distributed.test_ranks import torchrun
from tests.fastsc.replaying.replay_worker import record
from tests.fastsc.runs import events
from tests.pipelines.conftest import BACKENDS, DALI, needs_dali, opened, undecodable

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

WORKER = Path(__file__).with_name("replay_worker.py")
# 32 images: 4 steps an epoch, 8 in all.
SMALL = [
    "imagenet", "--model", "fastsc:resnet8w4", "--resolution", "32", "--batch-size", "8",
    "--epochs", "2", "--precision", "fp32", "--log-every", "1", "--workers", "2", "--val", "none",
]  # fmt: skip
Seen = dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The batches that trainings of this test take, by step; the last that took it counts."""
    monkeypatch.setattr(Step, "train_step", Step.train_step)  # put back afterwards
    batches: Seen = {}
    record(batches)
    return batches


def trained(data: Path, out: Path, *more: str, pipeline: str = "cpu", status: int = 0) -> Path:
    words = ["--pipeline", pipeline, "--data", str(data), "--out", str(out)]
    assert train([*SMALL, *words, *more]) == status
    return out


def replayed(run: Path, step: int | None, *more: str) -> dict[str, Any]:
    """What batch.npz holds; its metadata as a dictionary."""
    out = run.parent / f"replay-of-{run.name}"
    words = [] if step is None else ["--step", str(step)]
    assert main([str(run), *words, "--out", str(out), *more]) == 0
    assert (out / "sheet.png").is_file()
    with np.load(out / "batch.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return arrays | {"metadata": json.loads(str(arrays["metadata"]))}


def assert_same(arrays: dict[str, Any], batch: Any) -> None:
    for name, wanted in zip(("clean", "perturbed", "target", "index"), batch, strict=True):
        got = torch.from_numpy(arrays[name])
        assert torch.equal(got, wanted.float() if wanted.is_floating_point() else wanted), name


def write_log(run: Path, *events: dict[str, Any]) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


# --- against a training ---------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", BACKENDS)
def test_equals_the_training_on_every_pipeline(
    pipeline: str, request: pytest.FixtureRequest, tmp_path: Path, seen: Seen
) -> None:
    data = request.getfixturevalue("beton_folder" if pipeline == "ffcv" else "image_folder")
    run = trained(data, tmp_path / "run", "--precision", "bf16", pipeline=pipeline)
    assert sorted(seen) == list(range(1, 9))
    for step in (1, 4, 5, 8):
        arrays = replayed(run, step)
        assert_same(arrays, seen[step])
        assert arrays["clean"].dtype == np.float32
        meta = arrays["metadata"]
        assert (meta["dtype"], meta["pipeline"]) == ("bfloat16", pipeline)
        assert (meta["epoch"], meta["batch"]) == divmod(step - 1, 4)
        assert meta["decoder"] == meta["decoder_then"]
        assert meta["notes"] == []


@pytest.mark.parametrize(
    ("pipeline", "crop"),
    [
        ("cpu", "pad"),
        ("memory", "none"),
        pytest.param("dali", "pad", marks=needs_dali),
        pytest.param("cpu", "none", marks=pytest.mark.slow),
        pytest.param("memory", "pad", marks=pytest.mark.slow),
        pytest.param("dali", "none", marks=[needs_dali, pytest.mark.slow]),
    ],
)
def test_every_crop(
    pipeline: str, crop: str, image_folder: Path, tmp_path: Path, seen: Seen
) -> None:
    more = ["--crop", crop, "--no-flip", "--max-steps", "3"]
    run = trained(image_folder, tmp_path / "run", *more, pipeline=pipeline)
    arrays = replayed(run, 3)
    assert_same(arrays, seen[3])
    assert not arrays["flips"].any()
    assert bool(arrays["shifts"].any()) == (crop == "pad")


def test_two_ranks_then_one_with_another_pipeline(
    image_folder: Path, tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    more = ["--paired-fraction", "0.5", "--checkpoint-steps", "1"]
    words = [*SMALL, "--pipeline", "cpu", "--data", str(image_folder), "--out", str(run), *more]
    process = torchrun(2, str(WORKER), str(tmp_path), *words, "--max-steps", "6")
    said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert sorted(ranks[0]) == [1, 2, 3, 4, 5, 6]
    (run / "checkpoints" / "step-00000006.pt").unlink()  # that of step 5, in mid-epoch, is left
    trained(image_folder, run, *more, "--resume", pipeline="memory")
    assert sorted(seen) == [6, 7, 8]

    for step in (3, 5):
        for rank in range(2):
            arrays = replayed(run, step, "--rank", str(rank))
            assert_same(arrays, ranks[rank][step])
            assert (arrays["metadata"]["rank"], len(arrays["perturbed"])) == (rank, 2)
        arrays = replayed(run, step)
        assert (arrays["metadata"]["rank"], arrays["metadata"]["world_size"]) == (None, 2)
        assert len(arrays["perturbed"]) == 4
        dealt = [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*(r[step] for r in ranks))]
        assert_same(arrays, dealt)
    for step in (6, 8):
        arrays = replayed(run, step, "--rank", "0")
        assert_same(arrays, seen[step])
        assert arrays["metadata"]["pipeline"] == "memory"
        assert arrays["metadata"]["world_size"] == 1
    # One order of the global batch, for any number of ranks.
    assert (
        replayed(run, 6)["index"]
        == np.concatenate([r[6][3] for r in ranks]).reshape(2, 4).T.ravel()
    ).all()


def test_progressive_resolution(image_folder: Path, tmp_path: Path, seen: Seen) -> None:
    more = ["--min-resolution", "32", "--resolution", "96", "--resolution-ramp", "0", "2"]
    run = trained(image_folder, tmp_path / "run", *more, "--epochs", "3", "--max-steps", "9")
    sides = []
    for step in (4, 5, 9):
        assert_same(arrays := replayed(run, step), seen[step])
        sides.append(arrays["clean"].shape[-1])
        assert arrays["metadata"]["resolution"] == sides[-1]
    assert sides == [32, 64, 96]


@pytest.mark.parametrize("pipeline", ["cpu", DALI])
def test_a_broken_image_has_its_substitute(
    pipeline: str,
    image_folder: Path,
    tmp_path: Path,
    seen: Seen,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    more = ["--on-bad-image", "skip", "--log-every", "3"]
    run = trained(data, tmp_path / "run", *more, pipeline=pipeline)
    hole = scan(data / "train").paths.index("boat/hole.png")
    replaced = 0
    for step in range(1, 9):
        capsys.readouterr()
        arrays = replayed(run, step)
        assert_same(arrays, seen[step])
        if hole in arrays["planned"]:
            replaced += 1
            (row,) = np.flatnonzero(arrays["planned"] == hole)
            assert arrays["index"][row] != hole
            assert "in place of boat/hole.png, which is broken" in capsys.readouterr().out
    assert replaced


def test_what_verify_left_out_stays_out(image_folder: Path, tmp_path: Path, seen: Seen) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    run = trained(data, tmp_path / "run", "--on-bad-image", "skip", "--verify")
    moved = tmp_path / "moved"
    data.rename(moved)
    for step in (2, 7):
        assert_same(replayed(run, step, "--data", str(moved)), seen[step])


@pytest.mark.parametrize("form", ["absolute", "relative", "moved"])
def test_a_list_names_what_verify_left_out(
    image_folder: Path, tmp_path: Path, seen: Seen, form: str
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    paths = sorted((data / "train").rglob("*.*"))
    names = paths if form == "absolute" else [path.relative_to(data) for path in paths]
    rows = [f"{name},{path.parent.name}" for name, path in zip(names, paths, strict=True)]
    (data / "list.csv").write_text("\n".join(["path,label", *rows]))
    run = trained(data / "list.csv", tmp_path / "run", "--on-bad-image", "skip", "--verify")
    more: list[str] = []
    if form == "moved":
        data = data.rename(tmp_path / "moved")
        more = ["--data", str(data / "list.csv")]
    assert_same(replayed(run, 2, *more), seen[2])


def test_a_repair_of_images_alone_names_what_verify_left_out(
    image_folder: Path, tmp_path: Path, seen: Seen
) -> None:
    begun = trained(image_folder, tmp_path / "begun", "--max-steps", "1")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (image_folder / "train").rglob("*.jpg"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    for i in range(8):  # of which some are trained on
        (flat / f"hole-{i}.png").write_bytes(undecodable())
    words = ["repair", "--init", str(begun), "--data", str(flat), "--out", str(tmp_path / "run")]
    words += ["--on-bad-image", "skip", "--verify", "--epochs", "1", "--batch-size", "8"]
    assert train([*words, "--workers", "1", "--precision", "fp32", "--keep", "0.01"]) == 0
    assert_same(replayed(tmp_path / "run", 1), seen[1])


def test_a_loss_that_is_not_finite(
    image_folder: Path, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(image_folder, tmp_path / "run", "--lr", "1e20", status=2)
    capsys.readouterr()
    arrays = replayed(run, None)
    step = arrays["metadata"]["step"]
    assert step == max(seen)
    assert arrays["metadata"]["nonfinite"]
    assert_same(arrays, seen[step])
    assert "was not finite" in capsys.readouterr().out


def test_logged_indices_are_what_is_replayed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(image_folder, tmp_path / "run")
    shares = [[3, 4, 5, 6], [20, 0, 21, 22]]
    line = {"event": "nonfinite", "step": 7, "epoch": 1, "batch": 2, "action": "skip"}
    write_log(run, line | {"index": shares})
    arrays = replayed(run, None)
    assert arrays["index"].tolist() == [3, 20, 4, 0, 5, 21, 6, 22]
    assert arrays["metadata"]["world_size"] == 2
    assert "where the plan has" in capsys.readouterr().out
    loader = build("cpu", image_folder / "train", batch_size=8, resolution=32, world_size=2)
    wanted = loader.batch_of(loader.plan(1), np.array(shares[1]))
    loader.close()
    assert_same(replayed(run, 7, "--rank", "1"), wanted)


def test_crops_and_factors_against_pillow_and_torchvision(
    image_folder: Path, tmp_path: Path
) -> None:
    run = trained(image_folder, tmp_path / "run", "--resolution", "48", "--seed", "5")
    arrays = replayed(run, 6)
    factors = keyed.factors(5, 1, 32, (0.4, 0.4, 0.4, 0.1))
    assert np.array_equal(arrays["factors"], factors[arrays["index"]])
    assert np.array_equal(arrays["flips"], keyed.flips(5, 1, 32)[arrays["index"]])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    for row, path in enumerate(arrays["paths"].tolist()):
        top, left, height, width = arrays["boxes"][row].tolist()
        with Image.open(image_folder / "train" / path) as file:
            image = file.convert("RGB").crop((left, top, left + width, top + height))
        wanted = functional.to_dtype(
            functional.pil_to_tensor(image.resize((48, 48), Image.Resampling.BILINEAR)),
            torch.float32,
            scale=True,
        )
        wanted = wanted.flip(-1) if arrays["flips"][row] else wanted
        clean, perturbed = (
            torch.from_numpy(arrays[name][row]) * std + mean for name in ("clean", "perturbed")
        )
        assert (clean - wanted).abs().mean() < 1.5 / 255
        brightness, contrast, saturation, hue = arrays["factors"][row].tolist()
        changed = functional.adjust_brightness(clean.clamp(0, 1), brightness)
        changed = functional.adjust_contrast(changed, contrast)
        changed = functional.adjust_hue(functional.adjust_saturation(changed, saturation), hue)
        assert (perturbed - changed).abs().max() < 1.5 / 255


# --- one batch of a pipeline ----------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", BACKENDS)
def test_one_batch_in_the_middle_of_an_epoch(
    pipeline: str, image_folder: Path, tmp_path: Path
) -> None:
    index = opened(pipeline, image_folder / "train", tmp_path)
    loader = build(pipeline, index, batch_size=6, resolution=40, workers=2)
    loader.set_epoch(2)
    whole = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(loader.batch_at(2, 3), whole[3], strict=True))  # type: ignore[arg-type]
    batches = iter(loader)
    first = [next(batches), next(batches)]
    other = loader.batch_at(1, 4)
    assert other is not None
    assert not torch.equal(other.index, whole[4].index)
    assert loader.state_dict() | {"epoch": 2, "batch": 2} == loader.state_dict()
    for a, b in zip([*first, *batches], whole, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an epoch has 5, 0 to 4"):
        loader.batch_at(0, 5)
    loader.close()


def test_large_images_are_replayed_as_they_were_decoded(
    image_folder: Path, tmp_path: Path, seen: Seen
) -> None:
    """Also those of a run that knew no other way than --exact-decode."""
    short = ["--max-steps", "1", "--resolution", "16"]
    batches = []
    for name, more in (("fast", []), ("exact", ["--exact-decode"]), ("older", ["--exact-decode"])):
        run = trained(image_folder, tmp_path / name, *short, *more)
        if name == "older":
            for file in (run / "log.jsonl", run / "config.yaml"):
                text = file.read_text().replace("exact_decode: true\n", "")
                file.write_text(text.replace('"exact_decode": true, ', ""))
                assert "exact_decode" not in file.read_text()
        assert_same(replayed(run, 1), seen[1])
        batches.append(seen[1][0])
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(batches[1], batches[2])
    older = tmp_path / "older"
    trained(image_folder, older, "--resolution", "16", "--max-steps", "2", "--resume")
    assert_same(replayed(older, 2), seen[2])
    (resumed,) = events(older, "resume")
    assert resumed["exact_decode"] is True
