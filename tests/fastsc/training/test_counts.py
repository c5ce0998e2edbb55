"""What a step asks of the host and of the other processes, frozen: a GPU waits for each of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastsc.config import TrainConfig
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import PairBatch
from fastsc.run.log import read_log
from fastsc.training.collapse import CollapseWatch, Figures
from fastsc.training.figures import Measured
from fastsc.training.setup import prepare
from fastsc.training.state import Training
from fastsc.training.step import Step
from tests.fastsc.distributed.test_one_rank import one_of_many  # noqa: F401
from tests.fastsc.runs import events, same_weights
from tests.fastsc.training.test_train_options import run

CPU = torch.device("cpu")
N, SIDE = 8, 32
TIMES = {"seconds", "time", "pairs_per_s", "loader_wait"}
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


class Counted(TorchDispatchMode):
    """Within the context: calls of ATen, values that the host reads, collectives."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.calls = self.collectives = 0
        self.reads = Counter[str]()
        for name in ("tolist", "cpu", "numpy"):  # which dispatch nothing on a CPU
            patch.setattr(torch.Tensor, name, self._reading(name))

    def _reading(self, name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def reading(*args: Any, **options: Any) -> Any:
            self.reads[name] += 1
            return original(*args, **options)

        return reading

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func.name().removeprefix("aten::").partition(".")[0]
        self.calls += 1
        self.reads[name] += name in READS
        self.collectives += name.startswith("c10d::")
        return func(*args, **(kwargs or {}))


def counted(
    patch: pytest.MonkeyPatch, ranks: Ranks, *, measured: bool, **changes: Any
) -> tuple[int, int, int]:
    """Of a step that is not the first: ATen calls, host reads, collectives."""
    base = {
        "model": "fastsc:resnet8w4", "stem": "cifar", "resolution": SIDE, "batch_size": N,
        "precision": "fp32",
    }  # fmt: skip
    config = TrainConfig().replace(**{**base, **changes})
    step = Step(config, prepare(config, 5, CPU, "fp32", ranks), CPU, "fp32", ranks)
    views = torch.randn(2, N, 3, SIDE, SIDE)
    batch = PairBatch(views[0], views[1], torch.zeros(N, dtype=torch.int64), torch.arange(N))
    for _ in range(2):  # DDP makes its buckets anew in the second
        step.train_step(batch, lr=0.1, alpha=1.0, measured=measured)
    with patch.context() as undone, Counted(undone) as counts:
        step.train_step(batch, lr=0.1, alpha=1.0, measured=measured)
    return counts.calls, counts.reads.total(), counts.collectives


SPLIT = {"bn": "split"}
PLAIN = {"alpha": 0.0, "ce_views": "clean"}


# ATen's calls are those of torch 2.14, and some room.
@pytest.mark.parametrize(
    ("changes", "step", "logged"),
    [
        ({}, 330, 340),
        ({"clip_grad": 1.0}, 340, 350),
        ({"ema": 0.9}, 430, 440),
        (PLAIN, 190, 345),
        (SPLIT, 435, 445),
    ],
    ids=["default", "clip", "ema", "plain", "split"],
)
def test_a_step_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], step: int, logged: int
) -> None:
    for measured, most in ((False, step), (True, logged)):
        calls, reads, collectives = counted(monkeypatch, Ranks(), measured=measured, **changes)
        assert (reads, collectives) == (0, 0)
        assert calls <= most


# Of all gradients one, since they fit a bucket of DDP's; of a logged step loss and both features.
@pytest.mark.parametrize(
    ("changes", "step", "logged"),
    [({}, 1, 4), ({"ds": "relative"}, 3, 6), ({**SPLIT, "sync_bn": True}, 1 + 2 * 7, 4 + 2 * 7)],
    ids=["default", "relative", "split and synchronized"],
)
def test_collectives(
    monkeypatch: pytest.MonkeyPatch,
    one_of_many: Ranks,  # noqa: F811
    changes: dict[str, Any],
    step: int,
    logged: int,
) -> None:
    with one_of_many.connected(CPU):
        for measured, expected in ((False, step), (True, logged)):
            _, reads, n = counted(monkeypatch, one_of_many, measured=measured, **changes)
            assert (reads, n) == (0, expected)


def test_a_training_as_on_a_gpu_logs_the_same(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures arrive a step later there, under their own step's number, before what follows."""
    more = ["--checkpoint-steps", "3", "--csv", "--epochs", "3"]
    assert run(image_folder, tmp_path / "cpu", *more) == 0
    read = list[int]()
    original = Measured.read

    def reading(self: Measured) -> Any:
        read.append(trainings[-1].step)
        return original(self)

    trainings = list[Training]()
    begin = Training.begin_epoch
    monkeypatch.setattr(
        Training, "begin_epoch", lambda self: (trainings.append(self), begin(self))[1]
    )
    monkeypatch.setattr(Training, "looks_at_every_loss", False)
    monkeypatch.setattr(Measured, "read", reading)
    assert run(image_folder, tmp_path / "gpu", *more) == 0
    # At once where it is the first, the last, or in front of a checkpoint; else with the next.
    assert read == [1, 3, 3, 4, 6, 6, 8, 8, 9, 11, 12, 12]
    one, other = (
        [{key: event.get(key) for key in event if key not in TIMES} for event in read_log(log)]
        for log in (tmp_path / "cpu" / "log.jsonl", tmp_path / "gpu" / "log.jsonl")
    )
    assert [event for event in one if event["event"] != "header"] == other[1:]
    assert same_weights(tmp_path / "cpu", tmp_path / "gpu")


def test_a_loss_that_is_not_finite_is_named_with_the_next_figures(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "looks_at_every_loss", False)
    step = Step.train_step

    def poisoned(self: Step, batch: PairBatch, **options: Any) -> Any:
        if self.step + 1 == 2:
            batch = batch._replace(clean=batch.clean * float("inf"))
        return step(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", poisoned)
    out = tmp_path / "run"
    assert run(image_folder, out, "--val", "none", "--epochs", "3") == 2
    assert [event["step"] for event in events(out, "nonfinite")] == [2]
    (end,) = events(out, "end")
    assert end["steps"] == 3


def test_the_collapse_watch_looks_at_every_tenth_step(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.training.fit.WATCHED", 2)
    seen = list[float]()
    observe = CollapseWatch.observe

    def observed(self: CollapseWatch, figures: Figures) -> str | None:
        seen.append(figures["lr"])
        return observe(self, figures)

    monkeypatch.setattr(CollapseWatch, "observe", observed)
    out = tmp_path / "run"
    assert run(image_folder, out, "--log-every", "7", "--val", "none") == 0
    assert [event["step"] for event in events(out, "step")] == [1, 7, 8]
    assert len(seen) == len({1, 2, 4, 6, 7, 8})
