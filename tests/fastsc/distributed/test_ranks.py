"""Several processes, as torchrun starts them, against one process with the same global batch."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.run import checkpoint
from fastsc.run.log import read_log
from fastsc.train import main
from tests.fastsc.runs import events, same_weights, wait_for_step, weights
from tests.pipelines.conftest import undecodable

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

WORKER = Path(__file__).with_name("rank_worker.py")
ROOT = Path(__file__).parents[3]
# LayerNorm: nothing depends on which images share a process. 32 images, 4 steps an epoch.
SMALL = [
    "imagenet", "--pipeline", "cpu", "--model", "timm:test_convnext", "--resolution", "32",
    "--batch-size", "8", "--precision", "fp32", "--log-every", "1", "--workers", "1",
    "--epochs", "5", "--lr", "1", "--val-every", "5",
]  # fmt: skip
SHORT = ["--epochs", "2", "--val-every", "2"]
NORMED = ["--model", "fastsc:resnet8w4"]


def torchrun(n: int, *words: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), *words]
    return subprocess.Popen(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ranked(n: int, data: Path, out: Path, *more: str, status: int = 0) -> tuple[str, list[Any]]:
    """Runs the training on n ranks; what they printed, and what each rank saw."""
    dump = out.with_name(out.name + "-dump")
    dump.mkdir(exist_ok=True)
    words = [*SMALL, "--data", str(data), "--out", str(out), *more]
    process = torchrun(n, str(WORKER), str(dump), "train", *words)
    said, _ = process.communicate(timeout=110)
    assert bool(process.returncode) == bool(status), said
    ended = [torch.load(path)["status"] for path in dump.glob("rank*.pt")]
    assert set(ended) == {status}, said  # of a failure torchrun may kill those that are left
    assert "fastsc/training/" not in said, "a traceback of ours"
    return said, [torch.load(dump / f"rank{r}.pt") for r in range(n)] if not status else []


def single(data: Path, out: Path, *more: str) -> None:
    assert main([*SMALL, "--data", str(data), "--out", str(out), *more]) == 0


def assert_same_losses(one: Path, other: Path, n_steps: int) -> None:
    """Losses and measures of the first steps to float32's rounding."""
    steps = list(zip(events(one, "step"), events(other, "step"), strict=True))
    assert len(steps) >= n_steps
    for a, b in steps[:n_steps]:
        for name in ("loss", "ce", "ds", "ds_relative", "between", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-4), (a["step"], name)
        assert (a["lr"], a["alpha"]) == (b["lr"], b["alpha"])


def assert_same_training(one: Path, other: Path, n_steps: int = 20) -> None:
    """All losses, the weights that they led to, and what validation said of these."""
    assert_same_losses(one, other, n_steps)
    for a, b in zip(weights(one).items(), weights(other).items(), strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-5)
    (a,), (b,) = events(one, "epoch")[-1:], events(other, "epoch")[-1:]
    assert a["val"].pop("n") == b["val"].pop("n") == 12
    assert b["val"] == pytest.approx(a["val"], rel=1e-3)


def assert_no_image_twice(seen: list[Any], n_epochs: int, n_images: int) -> None:
    for epoch in range(n_epochs):
        rows = slice(4 * epoch, 4 * epoch + 4)
        index = torch.cat([i for rank in seen for i in rank["index"][rows]])
        assert sorted(index.tolist()) == list(range(n_images))


def assert_equal_ranks(seen: list[Any]) -> None:
    first = seen[0]["state"]
    for rank in seen[1:]:
        assert all(torch.equal(first[key], rank["state"][key]) for key in first)


def test_the_ranks_operations() -> None:
    process = torchrun(2, str(WORKER), "-", "pieces")
    said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said


# 12 validation images in batches of 8: with 4 ranks the last batch is one image for each.
@pytest.mark.parametrize(
    ("n", "kind"),
    [
        pytest.param(2, "relative", marks=pytest.mark.slow),
        pytest.param(2, "sq", marks=pytest.mark.slow),
        (4, "relative"),
    ],
)
def test_ranks_equal_one_process(image_folder: Path, tmp_path: Path, n: int, kind: str) -> None:
    method = [*SHORT, "--ds", kind, "--alpha", "0.5", "--ema", "0.9", "--clip-grad", "1"]
    single(image_folder, tmp_path / "one", *method)
    said, seen = ranked(n, image_folder, tmp_path / "many", *method)
    assert_same_training(tmp_path / "one", tmp_path / "many", 8)
    assert_no_image_twice(seen, 2, 32)
    assert_equal_ranks(seen)
    assert all(seen[0]["ema"][k].equal(rank["ema"][k]) for rank in seen for k in seen[0]["ema"])
    (header,) = events(tmp_path / "many", "header")
    assert (header["world_size"], header["batch_size"]) == (n, 8)
    assert said.count("done in") == len(events(tmp_path / "many", "epoch")), "one rank speaks"


def test_accumulation_over_ranks_equals_one_process(image_folder: Path, tmp_path: Path) -> None:
    method = [*SHORT, "--paired-fraction", "0.5", "--lr", "0.1"]
    method += ["--alpha", "3", "--alpha-warmup-epochs", "0"]
    single(image_folder, tmp_path / "one", *method)
    ranked(2, image_folder, tmp_path / "many", *method, "--accumulate", "2")
    assert_same_training(tmp_path / "one", tmp_path / "many", 8)


@pytest.mark.parametrize("bn", ["joint", pytest.param("split", marks=pytest.mark.slow)])
def test_synchronized_batch_norm_equals_one_process(
    image_folder: Path, tmp_path: Path, bn: str
) -> None:
    more = [*SHORT, *NORMED, "--bn", bn, "--lr", "0.02"]
    single(image_folder, tmp_path / "one", *more)
    _, seen = ranked(2, image_folder, tmp_path / "many", *more, "--sync-bn")
    # Batch norm over few images soon turns float32's rounding into a difference; that it is exact
    # is tested in float64, among the ranks' operations.
    assert_same_losses(tmp_path / "one", tmp_path / "many", 4)
    assert_equal_ranks(seen)


def test_local_batch_norm_ends_equal_and_resumes_exactly(
    image_folder: Path, tmp_path: Path
) -> None:
    more = [*SHORT, *NORMED, "--checkpoint-steps", "1"]
    _, seen = ranked(2, image_folder, tmp_path / "whole", *more)
    assert_equal_ranks(seen)
    out = tmp_path / "parts"
    ranked(2, image_folder, out, *more, "--max-steps", "6")
    (out / "checkpoints" / "step-00000006.pt").unlink()  # that of step 5, in mid-epoch, is left
    _, seen = ranked(2, image_folder, out, *more, "--resume")
    assert events(out, "resume")[0]["step"] == 5
    assert_equal_ranks(seen)
    assert same_weights(tmp_path / "whole", out)
    # Another number of ranks goes on too: with the mean of the running statistics.
    other = Path(shutil.copytree(out, tmp_path / "other"))
    single(image_folder, other, *NORMED, "--resume", "--epochs", "3")
    assert events(other, "resume")[-1]["changed"]["world_size"] == 1


def test_a_signal_to_one_rank_stops_all(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    dump = tmp_path / "dump"
    dump.mkdir()
    words = [*SMALL, "--data", str(image_folder), "--out", str(out), "--epochs", "4000"]
    process = torchrun(2, str(WORKER), str(dump), "train", *words)
    try:
        wait_for_step(process, out, 3)  # type: ignore[arg-type]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode, said
    end = events(out, "end")[-1]
    assert "stopped by" in end["reason"]
    assert checkpoint.load_newest(out / "checkpoints").state["step"] == end["steps"]  # type: ignore[union-attr]
    assert [torch.load(dump / f"rank{r}.pt")["status"] for r in range(2)] == [75, 75]


def test_a_broken_image_on_one_rank_ends_all_with_one_line(
    image_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    began = time.monotonic()
    said, _ = ranked(2, data, tmp_path / "run", "--epochs", "50", status=2)
    assert time.monotonic() - began < 100
    assert said.count("fastsc.train:") == 1
    assert "hole.png" in said
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    _, seen = ranked(2, data, tmp_path / "skip", *SHORT, "--on-bad-image", "skip")
    assert [Path(e["path"]).name for e in events(tmp_path / "skip", "bad_image")] == ["hole.png"]
    assert_equal_ranks(seen)


def test_an_error_of_one_rank_ends_all_though_the_group_s_end_would_wait(
    image_folder: Path, tmp_path: Path
) -> None:
    """Started without torchrun, which would end the others itself."""
    out, with_port = tmp_path / "run", socket.create_server(("127.0.0.1", 0))
    port = with_port.getsockname()[1]
    with_port.close()
    command = [sys.executable, str(WORKER.with_name("drained_worker.py")), "3", *SMALL, *NORMED]
    command += ["--data", str(image_folder), "--out", str(out)]
    shared = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    shared |= {"MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [75, 1], said
    assert "rank 0 has lost contact with the others" in said[0]
    assert "RuntimeError: out of memory" in said[1]
    assert "out of memory" in read_log(out / "ranks" / "rank-1.jsonl")[-1]["reason"]
    assert "lost contact" in events(out, "end")[-1]["reason"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param(["--batch-size", "9"], "not a multiple of 2 proc", marks=pytest.mark.slow),
        pytest.param(["--model", "resnet19"], "resnet18", marks=pytest.mark.slow),
        pytest.param(["--alhpa", "3"], "--alpha", marks=pytest.mark.slow),
        (["--seed", "{rank}"], "--seed is 1 for rank 1 and 0 for rank 0"),
        (["--val", "val{rank}"], "the validation images of rank 1 are not those of rank 0"),
        (["--verify", "--data", "holes"], "train/boat/hole.png"),
    ],
)
def test_a_mistake_is_said_once(
    image_folder: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    for name in ("holes", "other"):
        shutil.copytree(image_folder, tmp_path / name)
    (tmp_path / "holes" / "train" / "boat" / "hole.png").write_bytes(undecodable())
    (tmp_path / "other" / "val" / "boat" / "00.jpg").unlink()
    (tmp_path / "val0").symlink_to(image_folder / "val")
    (tmp_path / "val1").symlink_to(tmp_path / "other" / "val")
    more = [str(tmp_path / word) if word in ("holes", "val{rank}") else word for word in more]
    said, _ = ranked(2, image_folder, tmp_path / "run", *more, status=2)
    assert said.count("fastsc.train:") == 1
    assert words in said
    assert not (tmp_path / "run").exists()
