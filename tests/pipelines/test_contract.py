"""The contract of a pipeline, once, over every backend."""

from __future__ import annotations

import gc
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from fastsc.pipelines import IMAGENET_STD, BetonIndex, PairBatch, Pipeline, UserError, build
from tests.pipelines.conftest import opened

SIZE = 48  # output pixels
N, N_VAL, BATCH = 31, 11, 5  # usable images, divisible by nothing: 6 batches, 1 image is dropped
Make = Callable[..., Pipeline]


@pytest.fixture
def make(backend: str, image_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """build(...) of the backend at hand over the shared folder, closed after the test."""
    indices = {
        "train": opened(backend, image_folder / "train", tmp_path).without(
            {17: "left out by the test"}
        ),
        "val": opened(backend, image_folder / "val", tmp_path).without({4: "left out by the test"}),
    }

    def build_one(**options: Any) -> Pipeline:
        defaults = {"batch_size": BATCH, "resolution": SIZE, "workers": 2, "timeout": 30}
        split = "train" if options.get("train", True) else "val"
        loader = build(backend, indices[split], on_bad_image="skip", **defaults | options)
        request.addfinalizer(loader.close)
        return loader

    return build_one


def equal(a: PairBatch, b: PairBatch) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )


def all_equal(a: list[PairBatch], b: list[PairBatch]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def epoch(loader: Pipeline, number: int = 0) -> list[PairBatch]:
    loader.set_epoch(number)
    return list(loader)


def seen(batches: list[PairBatch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


def test_shapes_types_and_layout(make: Make) -> None:
    loader = make(dtype=torch.bfloat16)
    batches = epoch(loader)
    assert len(batches) == len(loader) == 6
    for batch in batches:
        assert batch.perturbed is not None
        for view in (batch.clean, batch.perturbed):
            assert view.shape == (BATCH, 3, SIZE, SIZE)
            assert view.dtype == torch.bfloat16
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert batch.target.dtype == batch.index.dtype == torch.int64
        assert batch.target.tolist() == loader.index.targets[batch.index.numpy()].tolist()


def test_views_share_no_memory_and_are_not_overwritten(make: Make) -> None:
    loader = make()
    kept, copies = [], []
    for number in range(3):  # a consumer that keeps every batch
        for batch in epoch(loader, number):
            kept.append(batch)
            copies.append(PairBatch(*[None if x is None else x.clone() for x in batch]))  # type: ignore[arg-type]
    assert all_equal(kept, copies)
    addresses = [
        view.data_ptr() for b in kept for view in (b.clean, b.perturbed) if view is not None
    ]
    assert len(set(addresses)) == 2 * len(kept)


def test_clean_view_is_that_of_the_single_view_loader(make: Make) -> None:
    for pair, single in zip(epoch(make()), epoch(make(paired=False)), strict=True):
        assert single.perturbed is None
        assert torch.equal(pair.clean, single.clean)
        assert torch.equal(pair.index, single.index)


def test_strength_zero_changes_nothing(make: Make) -> None:
    for batch in epoch(make(strengths=(0, 0, 0, 0))):
        assert batch.perturbed is not None
        assert torch.equal(batch.clean, batch.perturbed)


def test_perturbed_view_is_torchvisions(make: Make) -> None:
    loader = make(mean=(0, 0, 0), std=(1, 1, 1))
    batch = epoch(loader, 3)[1]
    factors = loader.plan(3).factors[batch.index.numpy()]
    assert batch.perturbed is not None
    for clean, perturbed, (b, c, s, h) in zip(
        batch.clean, batch.perturbed, factors.tolist(), strict=True
    ):
        expected = tv.adjust_brightness(clean, b)
        expected = tv.adjust_contrast(expected, c)
        expected = tv.adjust_saturation(expected, s)
        expected = tv.adjust_hue(expected, h)
        assert (perturbed - expected).abs().max() <= 1 / 255


def whole_image(loader: Pipeline, i: int) -> torch.Tensor:
    """What the backend reads for a dataset index, decoded by Pillow: (3, H, W) uint8."""
    if not isinstance(loader.index, BetonIndex):
        with Image.open(loader.index.path(i)) as file:
            return tv.pil_to_tensor(file.convert("RGB"))
    samples, beton = loader.index.samples, loader.index.root.read_bytes()
    stored = beton[samples.offsets[i] : samples.offsets[i] + samples.n_bytes[i]]
    if samples.is_jpeg[i]:
        return tv.pil_to_tensor(Image.open(io.BytesIO(stored)))
    shape = samples.heights[i], samples.widths[i], 3
    return torch.from_numpy(np.frombuffer(stored, np.uint8).reshape(shape).copy()).permute(2, 0, 1)


def test_pixels_are_the_planned_crop_resized_and_mirrored(make: Make) -> None:
    loader = make(mean=(0, 0, 0), std=(1, 1, 1), resolution=64)
    plan = loader.plan(1)
    boxes = loader.stored_boxes(plan.boxes) if loader.name == "ffcv" else plan.boxes  # type: ignore[attr-defined]
    jpegs = loader.index.samples.is_jpeg if isinstance(loader.index, BetonIndex) else None
    for batch in epoch(loader, 1):
        for i, image in zip(batch.index.tolist(), batch.clean, strict=True):
            whole = whole_image(loader, i)
            top, left, height, width = boxes[i].tolist()
            if loader.name == "ffcv":
                region = whole[:, top : top + height, left : left + width].permute(1, 2, 0)
                resized = cv2.resize(region.numpy(), (64, 64), interpolation=cv2.INTER_AREA)
                expected = torch.from_numpy(resized).permute(2, 0, 1)
            else:
                box = top, left, height, width
                expected = tv.resized_crop(whole, *box, [64, 64], antialias=True)
            if plan.flips[i]:
                expected = expected.flip(-1)
            difference = ((image * 255).round() - expected).abs()
            # DALI rounds its antialiased resize in its own way; FFCV takes libjpeg-turbo's fast
            # transform, Pillow the accurate one.
            exact = jpegs is None or not jpegs[i]
            assert difference.max() <= (2 if loader.name == "dali" else 0 if exact else 6)


def test_same_seed_same_batches_for_any_number_of_workers(make: Make) -> None:
    first = epoch(make(workers=1), 2)
    assert all_equal(first, epoch(make(workers=2), 2))
    assert all_equal(first, epoch(make(workers=4), 2))


def test_iterating_twice_gives_the_same_epoch(make: Make) -> None:
    loader = make()
    assert all_equal(epoch(loader, 1), epoch(loader, 1))


def test_another_epoch_or_seed_gives_another_order_and_other_crops(make: Make) -> None:
    loader = make()
    orders = [seen(epoch(loader, 0)), seen(epoch(loader, 1)), seen(epoch(make(seed=1), 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert not np.array_equal(loader.plan(0).boxes, loader.plan(1).boxes)
    assert not np.array_equal(loader.plan(0).factors, loader.plan(1).factors)


def test_image_does_not_depend_on_the_batch_size(make: Make) -> None:
    def by_index(batches: list[PairBatch]) -> dict[int, torch.Tensor]:
        return {
            int(i): torch.stack([batch.clean[row], batch.perturbed[row]])  # type: ignore[index]
            for batch in batches
            for row, i in enumerate(batch.index)
        }

    some, others = by_index(epoch(make(batch_size=5))), by_index(epoch(make(batch_size=8)))
    common = some.keys() & others.keys()
    assert len(common) >= 2 * BATCH * 5 - N - 1
    assert all(torch.equal(some[i], others[i]) for i in common)


def test_training_drops_the_remainder_and_repeats_nothing(make: Make) -> None:
    indices = seen(epoch(make()))
    assert len(indices) == len(set(indices)) == N // BATCH * BATCH


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_keeps_every_image_once(make: Make, paired: bool, world_size: int) -> None:
    indices = []
    for rank in range(world_size):
        loader = make(train=False, paired=paired, rank=rank, world_size=world_size)
        batches = epoch(loader)
        assert len(batches) == len(loader)
        indices += seen(batches)
    assert sorted(indices) == [i for i in range(N_VAL + 1) if i != 4]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_global_batch(make: Make, world_size: int) -> None:
    size = 6
    whole = [set(batch.index.tolist()) for batch in epoch(make(batch_size=size), 1)]
    shards = [
        epoch(make(batch_size=size, rank=rank, world_size=world_size), 1)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        parts = [shard[step].index.tolist() for shard in shards]
        assert all(len(part) == size // world_size for part in parts)
        assert sorted(i for part in parts for i in part) == sorted(expected)


def test_validation_factors_do_not_depend_on_seed_or_epoch(make: Make) -> None:
    first = epoch(make(train=False), 0)
    assert all_equal(first, epoch(make(train=False, seed=7), 5))
    assert any(not torch.equal(b.clean, b.perturbed) for b in first)  # type: ignore[arg-type]


def test_resume_at_every_batch_and_over_the_edge(make: Make) -> None:
    loader = make()
    straight = [epoch(loader, 1), epoch(loader, 2)]
    for stop in range(len(straight[0]) + 1):
        loader = make()
        loader.set_epoch(1)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        batches.close()  # type: ignore[attr-defined]

        resumed = make()
        resumed.load_state_dict(state)
        resumed.set_epoch(1)  # what a training loop does next; it must not lose the place
        assert all_equal(list(resumed), straight[0][stop:])
        assert all_equal(epoch(resumed, 2), straight[1])


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1)])
def test_another_world_size_may_resume(make: Make, before: int, after: int) -> None:
    done, states = list[int](), []
    for rank in range(before):
        loader = make(batch_size=6, rank=rank, world_size=before)
        batches = iter(loader)
        done += seen([next(batches), next(batches)])
        states.append(loader.state_dict())
        batches.close()  # type: ignore[attr-defined]
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        loader = make(batch_size=6, rank=rank, world_size=after)
        loader.load_state_dict(states[0])
        rest += seen(list(loader))
    assert sorted(done + rest) == sorted(seen(epoch(make(batch_size=6), 0)))
    assert len(done + rest) == len(set(done + rest)) == N // 6 * 6


def test_resolution_changes_between_epochs(make: Make) -> None:
    loader = make(resolution=32)
    assert all_equal(epoch(loader, 0), epoch(make(resolution=32), 0))
    loader.set_resolution(SIZE)
    assert all_equal(epoch(loader, 1), epoch(make(resolution=SIZE), 1))
    resumed = make(resolution=32)  # a resume sets the resolution of the epoch that it goes on in
    loader.set_epoch(2)
    batches = iter(loader)
    first = next(batches)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_resolution(SIZE)
    assert all_equal([first, *resumed], epoch(make(resolution=SIZE), 2))
    batches.close()  # type: ignore[attr-defined]


def test_slow_consumer_sees_the_same(make: Make) -> None:
    loader, slow = make(), []
    for batch in loader:
        time.sleep(0.05)  # all that may be made ahead is made by then
        slow.append(batch)
    assert all_equal(slow, epoch(make()))


def test_error_in_a_worker_reaches_the_caller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(crop="rrc", timeout=20)
    # A function that this backend's threads call for every image.
    where = {"dali": "dali.read_into", "ffcv": "ffcv.fill"}.get(loader.name, "cpu.place")

    def fail(*_: object) -> None:
        raise MemoryError("no room for this image")

    with monkeypatch.context() as patch:
        patch.setattr(f"fastsc.pipelines.{where}", fail)
        with pytest.raises(MemoryError, match="no room for this image"):
            list(loader)
    assert all_equal(epoch(loader), epoch(make()))  # and does no lasting harm


@pytest.mark.parametrize(
    ("options", "what"),
    [({"seed": 1}, "--seed"), ({"batch_size": 6}, "--batch-size")],
)
def test_state_of_another_run_is_refused(make: Make, options: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=f"cannot resume: {what} has changed"):
        make(**options).load_state_dict(make().state_dict())


def test_state_of_other_data_is_refused(make: Make) -> None:
    state = make(train=False).state_dict()
    with pytest.raises(UserError, match="the data set has changed"):
        make().load_state_dict(state)


def test_memory_does_not_grow_with_epochs(make: Make) -> None:
    loader = make()
    held = []
    gc.disable()  # what waits for the collector is a leak to a process that allocates little
    try:
        for number in range(12):
            epoch(loader, number)
            batches = iter(loader)
            next(batches)
            batches.close()  # type: ignore[attr-defined]
            held.append(loader._pool.in_use)
    finally:
        gc.enable()
    # An abandoned epoch leaves up to three batches at work, which end in their own time.
    assert held[-1] <= held[0] + 3, held


def test_abandoned_iterator_leaves_no_thread_and_no_file(make: Make) -> None:
    for _ in make():  # what libraries open and start once a process
        break
    gc.collect()
    before, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    loader = make()
    for _ in range(3):
        batches = iter(loader)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    other = make()
    assert all_equal(list(loader), epoch(other))
    loader.close()
    other.close()
    assert not [t.name for t in set(threading.enumerate()) - before]
    assert len(os.listdir("/proc/self/fd")) == files


def test_padded_crops(make: Make, image_folder: Path) -> None:
    batches = epoch(make(crop="pad", flip=False, mean=(0, 0, 0), std=(1, 1, 1)))
    loader = make(crop="none", flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    plain = {
        int(i): image for b in epoch(loader) for i, image in zip(b.index, b.clean, strict=True)
    }
    shifts = make(crop="pad").plan(0).shifts
    assert shifts is not None
    compared = 0
    for batch in batches:
        for i, image in zip(batch.index.tolist(), batch.clean, strict=True):
            if i in plain:
                dy, dx = (int(step) for step in shifts[i])
                expected = tv.crop(tv.pad(plain[i], [4]), 4 + dy, 4 + dx, SIZE, SIZE)
                assert torch.equal(image, expected)
                compared += 1
    assert compared > 20


def test_flip_mirrors_the_whole_crop(make: Make) -> None:
    loader = make(crop="pad")
    flips = loader.plan(0).flips
    flipped, straight = epoch(loader), epoch(make(crop="pad", flip=False))
    for a, b in zip(flipped, straight, strict=True):
        for row, i in enumerate(a.index.tolist()):
            expected = b.clean[row].flip(-1) if flips[i] else b.clean[row]
            # DALI resizes a mirrored image from its other end, and may round the other way.
            tolerance = 1 / (255 * min(IMAGENET_STD)) if loader.name == "dali" else 0
            assert (a.clean[row] - expected).abs().max() <= tolerance * 1.001
