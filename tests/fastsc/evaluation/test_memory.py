"""The memory budget: which passes it makes, and that no figure depends on it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastsc.evaluation.memory import (
    FUTILE,
    GB,
    KEPT_BACKWARD,
    KEPT_FORWARD,
    PROBED,
    Cost,
    ProcessMeter,
    fitting,
    limit_passes,
    releasing,
)
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.passes import Passes
from fastsc.loading.preprocessing import Preprocessing
from fastsc.models.smallnets import SmallResNet
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")


def resnet() -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallResNet(8, 4), "small", Preprocessing(resolution=16, resize=16))


class Counter:
    """A meter of a model that takes `forward` and `backward` bytes an image."""

    def __init__(self, model: Classifier, forward: int, backward: int) -> None:
        self.sizes: list[int] = []
        self.each = {False: forward, True: backward}
        self.kept = self.released = 0
        model.passes = Passes(before=self._see)

    def _see(self, n: int, derived: bool) -> None:
        self.sizes.append(n)
        self.bytes = n * self.each[derived]

    def taken(self) -> int:
        return self.kept

    def release(self) -> None:
        self.released += 1

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.bytes


# --- the batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "each", "most", "images"),
    [
        (100, 1, 64, 64),
        (48, 1, 48, 48),  # what is asked for need not be a power of two
        (47, 1, 48, 32),
        (32, 1, 64, 32),
        (31.9, 1, 64, 16),
        (1, 1, 64, 1),
        (0.5, 1, 64, 1),
        (0, 1, 64, 1),
        (-5, 1, 64, 1),
        (-5, 0, 64, 1),
        (5, 0, 64, 64),
    ],
)
def test_the_room_sets_the_batch(room: float, each: float, most: int, images: int) -> None:
    assert fitting(room, each, most) == images


def test_the_probe_measures_a_few_images_where_there_is_room_for_them() -> None:
    model = resnet()
    meter = Counter(model, 10, 70)
    assert Cost.of(model, meter, math.inf) == Cost(10, 70)
    assert meter.sizes == [1, PROBED, 1, PROBED]
    meter.sizes.clear()
    assert Cost.of(model, meter, room=100) == Cost(10, 70)
    assert meter.sizes == [1, PROBED, 1]
    assert Cost(10, 70).passes(8 * 10 * KEPT_FORWARD, 64) == Passes(8, 1)
    assert Cost(10, 70).passes(8 * 70 * KEPT_BACKWARD, 64) == Passes(32, 8)


def test_memory_is_released_before_a_pass_that_would_go_beyond_the_budget() -> None:
    meter = Counter(resnet(), 0, 0)
    before = releasing(meter, 100, Cost(10, 70))
    meter.kept = 60
    before(4, False)
    assert not meter.released
    before(5, False)
    assert meter.released == 1


def test_a_release_that_does_not_suffice_is_seldom_tried_again() -> None:
    meter = Counter(resnet(), 0, 0)
    before = releasing(meter, 100, Cost(10, 70))
    meter.kept = 60  # whatever is released
    for _ in range(1 + FUTILE):
        before(1, True)
    assert meter.released == 1
    before(1, True)
    assert meter.released == 2
    meter.kept = 95
    before(1, False)  # of which 60 bytes leave room for it
    assert meter.released == 3


@pytest.mark.parametrize("error", [AssertionError, ValueError, TypeError, KeyError])
@pytest.mark.parametrize("fails", [lambda x: len(x) == 1, lambda x: x.requires_grad])
def test_a_probe_takes_whatever_a_model_raises(
    error: type[Exception], fails: Callable[[Tensor], bool]
) -> None:
    model, tried = resnet(), []

    def refuse(_: object, args: tuple[Tensor]) -> None:
        tried.append(fails(args[0]))
        if tried[-1]:
            raise error("not so")

    model.net.register_forward_pre_hook(refuse)
    limit_passes([model], 1e6, 48, CPU, print)
    assert any(tried)
    assert (model.passes.forward, model.passes.backward) == (48, 48)


def test_a_budget_below_what_the_process_takes_is_said_in_one_line() -> None:
    said: list[str] = []
    model = resnet()
    limit_passes([model], 1e-3, 64, CPU, said.append)
    assert (model.passes.forward, model.passes.backward) == (1, 1)
    (line,) = said
    assert "--memory-budget 0.001 is too small" in line
    assert "one image in a pass" in line


def test_a_large_budget_leaves_the_batch_as_it_is_and_says_nothing() -> None:
    said: list[str] = []
    model = resnet()
    limit_passes([model], 1e6, 48, CPU, said.append)
    assert (model.passes.forward, model.passes.backward, said) == (48, 48, [])


def test_a_gpu_has_no_bound_of_its_own() -> None:
    model = resnet()
    limit_passes([model], None, 64, torch.device("cuda"), print)
    assert model.passes == Passes()


def test_the_process_takes_what_a_tensor_does() -> None:
    meter = ProcessMeter()
    meter.release()
    before = meter.taken()
    peak = meter.peak(lambda: torch.ones(50_000_000))
    assert 0.19e9 < peak < 0.3e9
    meter.release()  # in a process that was told to keep memory
    assert meter.taken() < before + 0.1 * GB


# --- what comes of it ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answers_and_gradients_are_those_of_one_large_pass(size: int) -> None:
    model, whole = resnet(), resnet()
    model.passes = Passes(size, size)
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    model.net.layer1.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))

    def gradient(model: Classifier) -> tuple[Tensor, ...]:
        own = x.clone().requires_grad_()
        features, logits = model(own)
        (grad,) = torch.autograd.grad((logits.square().sum() + features.sum()), own)
        return features.detach(), logits.detach(), grad

    for here, there in zip(model(x), whole(x), strict=True):
        torch.testing.assert_close(here, there)
    for here, there in zip(gradient(model), gradient(whole), strict=True):
        torch.testing.assert_close(here, there)
    assert max(seen) <= size
    # Nothing of a pass outlives it.
    assert model.model._inputs == []


def test_passes_do_not_split_a_batch_whose_images_depend_on_each_other() -> None:
    model, whole = resnet().train(), resnet().train()
    model.passes = Passes(1, 1)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(model(x)[1], whole(x)[1])


def test_a_linear_network_answers_to_the_bit_the_same() -> None:
    model = tiny.flat()
    with torch.no_grad():
        model.net[1].weight.round_()
        model.net[1].bias.round_()
    x = torch.randint(0, 9, (5, 3, tiny.SIDE, tiny.SIDE)).float()
    whole = model(x)
    model.passes = Passes(2, 2)
    assert all(torch.equal(a, b) for a, b in zip(model(x), whole, strict=True))


# --- the process ---------------------------------------------------------------------------------

PEAK = """
import re, sys
from pathlib import Path
from fastsc import evaluate
assert evaluate.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.5, 2.5])
def test_the_process_keeps_within_its_budget(
    budget: float, image_folder: Path, tmp_path: Path
) -> None:
    command = (
        f"torchvision:mobilenet_v2 --no-pretrained --data {image_folder} --out {tmp_path / 'out'} "
        f"--only gradients explanations --images 4 --device cpu --memory-budget {budget}"
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command.split()], capture_output=True, text=True, check=True
    )
    assert "too small" not in done.stdout
    assert int(done.stdout.split()[-1]) * 1024 < budget * GB
