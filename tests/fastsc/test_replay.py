"""Replays against batches that a training was seen to take, bit for bit; and users' mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build, keyed, scan
from fastsc.replay import main
from fastsc.step import Step
from fastsc.train import main as train
from tests.fastsc.replay_worker import record
from tests.fastsc.test_ranks import torchrun
from tests.pipelines.conftest import BACKENDS, DALI, encoded, opened, photograph, undecodable

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


@pytest.mark.parametrize("crop", ["pad", "none"])
@pytest.mark.parametrize("pipeline", ["cpu", "memory", DALI])
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


# --- files ----------------------------------------------------------------------------------------


def test_the_run_is_left_alone_and_a_replay_replaces_only_a_replay(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(image_folder, tmp_path / "run", "--resolution", "130")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    capsys.readouterr()
    assert main([str(run), "--step", "2"]) == 0
    out = run / "replay" / "step-00000002"
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"wrote {out / 'batch.npz'}", f"wrote {out / 'sheet.png'}"]
    assert len(said) == 1 + 8 + 2
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in before}
    assert after == before
    assert {p.name for p in (run / "replay").iterdir()} == {"step-00000002"}

    with np.load(out / "batch.npz") as arrays, Image.open(out / "sheet.png") as sheet:
        picture = np.asarray(sheet)
        rgb = arrays["clean"][0].transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
        view = (rgb * 255).round().clip(0, 255).astype(np.uint8)
    places = np.lib.stride_tricks.sliding_window_view(picture[:400, :400], (130, 130, 3))
    near = np.abs(places[:, :, 0, ::40, ::40].astype(int) - view[::40, ::40]).max((2, 3, 4))
    assert (near <= 1).any(), "the first view is on the sheet, pixel for pixel"

    assert main([str(run), "--step", "2"]) == 0, "its own files are replaced"
    (out / "notes.txt").touch()
    assert main([str(run), "--step", "2"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (out / "notes.txt").exists()


def test_large_batches_have_several_sheets(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    for i in range(60):
        (data / "train" / "apple" / f"more{i}.jpg").write_bytes(encoded(photograph(i)))
    run = trained(data, tmp_path / "run", "--batch-size", "80", "--max-steps", "1")
    assert main([str(run), "--step", "1"]) == 0
    names = {path.name for path in (run / "replay" / "step-00000001").iterdir()}
    assert names == {"batch.npz", "sheet-1.png", "sheet-2.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_replay_that_fails(
    finished: Path,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    before = sorted(finished.rglob("*"))
    monkeypatch.setattr("fastsc.contact_sheet.draw_sheets", fail)
    assert main([str(finished), "--step", "1"]) == (2 if isinstance(error, OSError) else 130)
    said = "No space left" if isinstance(error, OSError) else "nothing was written"
    assert_one_line(capsys, said)
    assert sorted(finished.rglob("*")) == before


def test_a_link_and_the_folder_at_hand(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert main([str(finished), "--step", "1", "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "batch.npz").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(finished), "--step", "1", "--out", "."]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link", "here"}
    assert (tmp_path / "here" / "sheet.png").is_file()


def test_the_command_itself(finished: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fastsc.replay", str(finished), "--step", "2"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "out")],
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "WORLD_SIZE": "3", "RANK": "2"},  # torchrun's, of somebody else
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("step 2, epoch 0, batch 1 of 4, rank 0 of 1: 8 images")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own images: ROOT/run and ROOT/images."""
    root = tmp_path_factory.mktemp("finished")
    data = Path(shutil.copytree(image_folder, root / "images"))
    return trained(data, root / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}"], "--step N, 1 to 8"),
        (["{run}", "--step", "9"], "the run's last step is 8"),
        (["{run}", "--step", "0"], "steps count from 1"),
        (["{run}", "--step", "x"], "invalid int value"),
        (["{run}", "--step", "1", "--rank", "1"], "step 1 ran with one rank, 0"),
        (["{run}", "--step", "1", "--rank", "-1"], "step 1 ran with one rank, 0"),
        (["{run}", "--step", "1", "--device", "cuda:7"], "--device cuda:7"),
        (["{run}", "--step", "1", "--device", "gpu"], "--device must be"),
        (["{run}", "--step", "1", "--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["{run}", "--step", "1", "--pipeline", "fast"], "invalid choice"),
        (["{run}", "--step", "1", "--out", "{run}"], "holds other files"),
        (["{run}", "--step", "1", "--out", "{run}/config.yaml"], "is a file"),
        (["{run}", "--step", "1", "--out", "/proc/x"], "cannot be written"),
        (["{run}/nowhere", "--step", "1"], "no such folder"),
        (["{run}/checkpoints", "--step", "1"], "no config.yaml in it"),
        (["--step", "1"], "RUN"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    finished: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.rglob("*"))
    assert main([word.replace("{run}", str(finished)) for word in words]) == 2
    assert_one_line(capsys, said)
    assert sorted(finished.rglob("*")) == before


def assert_one_line(capsys: pytest.CaptureFixture[str], said: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastsc.replay: ")
    assert said in captured.err


@pytest.mark.parametrize("change", ["missing", "longer", "undecodable", "header"])
def test_changed_data_are_refused(
    image_folder: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    hole, whole = data / "train" / "boat" / "hole.png", encoded(photograph(7), "PNG")
    hole.write_bytes(whole)
    run = trained(data, tmp_path / "run", "--max-steps", "4")
    said = "not the run's images"
    if change == "missing":
        hole.unlink()
    elif change == "longer":
        hole.write_bytes(whole + b"\0")
    elif change == "header":
        hole.write_bytes(bytes(len(whole)))
    else:  # of the same size
        hole.write_bytes(undecodable())
        said = "hole.png: "
    capsys.readouterr()
    step = next(s for s in range(1, 5) if holds(run, data, s, "boat/hole.png"))
    assert main([str(run), "--step", str(step)]) == 2
    assert_one_line(capsys, said)
    assert not (run / "replay").exists()


def holds(run: Path, data: Path, step: int, name: str) -> bool:
    """Whether a file is planned for a step of the first epoch, by the order alone."""
    names = sorted(str(p.relative_to(data / "train")) for p in (data / "train").glob("*/*"))
    if name not in names:
        return True
    order = keyed.order(0, 0, np.arange(len(names)), len(names))
    return names.index(name) in order[8 * (step - 1) : 8 * step]


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
