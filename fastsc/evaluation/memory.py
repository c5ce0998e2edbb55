"""How many images go through a model in one pass, for an evaluation to keep within its memory.

On a CPU the budget is the peak of the whole process's resident memory, on a GPU that of what torch
holds of the device. Two things keep their batch whatever the budget, as their results depend on
it: fine-tuning, and the 16 images that the batch norm of the explanations' random network sees.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from fastsc.distributed.devices import map_memory, release_memory
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.passes import Passes
from fastsc.models.probe import device_of

GB = 1e9
ON_A_CPU = 2.5  # GB, where no budget is named
# Kept free for what comes after the probe: the libraries that questions import (scikit-image,
# captum, imagecorruptions), batches that are decoded ahead, and views.
RESERVE = 0.5e9
PROBED = 4  # images of the pass that is measured
FUTILE = 100  # passes without a release, where the last one left too little room
# What glibc keeps between the tensors of a pass, once it keeps what is freed: of
# EfficientNet-lite0, 16 images of 224 px, a pass took 351 MB in place of 198, with its backward
# 1401 in place of 1342.
KEPT_FORWARD, KEPT_BACKWARD = 2.0, 1.25
STATUS, STATM = Path("/proc/self/status"), Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Meter(Protocol):
    """What memory is taken, in bytes."""

    def taken(self) -> int:
        """Now, with what a library keeps for later; in microseconds."""

    def release(self) -> None:
        """Gives back what libraries keep for later."""

    def peak(self, work: Callable[[], object]) -> int:
        """How much more is taken at the peak of some work than before it, when all was released."""


class ProcessMeter:
    """Resident memory of this process, as Linux counts it."""

    def taken(self) -> int:
        return int(STATM.read_text().split()[1]) * PAGE

    def release(self) -> None:
        release_memory()

    def peak(self, work: Callable[[], object]) -> int:
        self.release()
        before = self.taken()
        # Where this is forbidden the peak is an earlier one, and the work seems to take more.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        work()
        highest = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        assert highest is not None
        return max(0, int(highest[1]) * 1024 - before)


class DeviceMeter:
    """What torch's allocator holds of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def taken(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def peak(self, work: Callable[[], object]) -> int:
        self.release()
        before = self.taken()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_reserved(self.device) - before


@dataclass(frozen=True)
class Cost:
    """Bytes that each image of a pass takes.

    Attributes:
        forward: Where nothing is derived.
        backward: With the gradient of the images.
    """

    forward: float
    backward: float

    @classmethod
    def of(cls, model: Classifier, meter: Meter, room: float) -> Cost:
        """As a probe of a few images shows it; of a pass that takes more than `room`, of one."""
        return cls(
            _each(model, meter, room, derived=False), _each(model, meter, room, derived=True)
        )

    def passes(self, room: float, most: int) -> Passes:
        """As many images as fit into `room` bytes with what is kept, at most `most`."""
        return Passes(
            fitting(room, KEPT_FORWARD * self.forward, most),
            fitting(room, KEPT_BACKWARD * self.backward, most),
        )


def limit_passes(
    models: Sequence[Classifier],
    budget: float | None,
    batch_size: int,
    device: torch.device,
    say: Callable[[str], object],
) -> None:
    """Sets the `passes` of models that are on their device, by a probe of each.

    On a CPU before `keep_memory`, after which the process takes more than its tensors do.

    Args:
        models: Of one evaluation.
        budget: In GB of 10⁹ bytes; None: 2.5 on a CPU, no bound on a GPU.
        batch_size: Images of a pass at most.
        device: Theirs.
        say: Is told, in a line, that the budget is too small for one image in a pass.

    Raises:
        UserError: A budget is named, and the system does not tell what memory a process takes.
    """
    if device.type == "cpu" and not STATUS.exists():
        if budget is not None:
            raise UserError(f"--memory-budget needs {STATUS}, which this system does not have")
        return
    if budget is None:
        if device.type != "cpu":
            return
        budget = ON_A_CPU
    meter = ProcessMeter() if device.type == "cpu" else DeviceMeter(device)
    if device.type == "cpu":
        map_memory()
    for model in models:
        meter.release()
        taken = meter.taken()
        room = budget * GB - taken - RESERVE
        cost = Cost.of(model, meter, room)
        model.passes = replace(
            cost.passes(room, batch_size), before=releasing(meter, budget * GB, cost)
        )
        if (largest := max(cost.forward, cost.backward)) > room:
            say(
                f"model {model.name}: --memory-budget {budget:g} is too small: {taken / GB:.1f} GB "
                f"are taken before an image is seen, one takes {largest / GB:.2f} GB, all else "
                f"{RESERVE / GB:.1f} GB; going on with one image in a pass"
            )


def fitting(room: float, each: float, most: int) -> int:
    """Images of a pass: `most` if they fit, else a power of two, and at least one.

    Powers of two, so that the noise of two measurements seldom makes two batches, and with them
    another rounding of the figures.

    Args:
        room: Bytes that a pass may take, maybe negative.
        each: Bytes of an image in a pass.
        most: At least 1.
    """
    if most * each <= room:
        return most
    return 2 ** int(math.log2(room / each)) if room >= each else 1


def releasing(meter: Meter, budget: float, cost: Cost) -> Callable[[int, bool], None]:
    """A `Passes.before` that releases memory where a pass would else go beyond a budget in bytes.

    On a CPU what is free, but kept for speed, lies in pieces that the next pass may not fit into:
    it grows to several times what is used. A release takes longer than a small pass: where the last
    one did not suffice for such a pass, it is tried again after `FUTILE` passes.
    """
    least, futile = 0, 0  # what was taken after the last release, passes until the next one

    def release(n: int, derived: bool) -> None:
        nonlocal least, futile
        wanted = n * (cost.backward if derived else cost.forward)
        if meter.taken() + wanted <= budget:
            return
        if futile and least + wanted > budget:
            futile -= 1
            return
        meter.release()
        least, futile = meter.taken(), FUTILE

    return release


def _each(model: Classifier, meter: Meter, room: float, *, derived: bool) -> float:
    alone = float(meter.peak(lambda: _pass(model, 1, derived=derived)))
    if PROBED * alone > room:
        return alone
    return meter.peak(lambda: _pass(model, PROBED, derived=derived)) / PROBED


def _pass(model: Classifier, n: int, *, derived: bool) -> None:
    side = model.preprocessing.resolution
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, side, side, generator=generator).to(device_of(model))
    x = x.contiguous(memory_format=torch.channels_last)
    # What the model cannot do is reported where it is wanted.
    with contextlib.suppress(Exception), torch.inference_mode(not derived):
        _, logits = model(x.requires_grad_() if derived else x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x)
