"""`build` refuses what cannot be meant, in one line."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsc.jitter import ColorJitter
from fastsc.kernels import normalize
from fastsc.kernels.arguments import scale_and_shift
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, PairBatch, UserError, build, keyed, scan
from fastsc.pipelines.memory import MemoryPipeline
from fastsc.pipelines.plan import Settings
from tests.pipelines.conftest import encoded, photograph


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pipeline": "dalli"}, "there are dali, cpu, ffcv, memory"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": 100}, "smaller --batch-size"),
        ({"resolution": 0}, "resolution"),
        ({"workers": 0}, "workers"),
        ({"crop": "rcc"}, "crop must be one of rrc, pad, reflect, none"),
        ({"on_bad_image": "Skip"}, "on_bad_image must be one of raise, skip"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 3.0}, "seed"),
        ({"resolution": 4, "crop": "reflect"}, "crop reflect mirrors 4 pixels"),
        ({"strengths": 0.4}, "four numbers"),
        ({"strengths": np.array(0.4)}, "four numbers"),
        ({"val_crop": "x"}, "val_crop must be a finite number"),
        ({"timeout": float("inf")}, "timeout must be a finite number"),
        ({"timeout": 1e9}, "timeout must be above 0 and at most 604,800"),
        ({"rank": 0.5}, "rank must be a whole number"),
        ({"world_size": "2"}, "world_size must be a whole number"),
        ({"device": "meta"}, "device must be cpu, cuda"),
        ({"strengths": (0.4, 0.4, 0.4)}, "four numbers"),
        ({"strengths": (0.4, float("nan"), 0.4, 0.1)}, "four numbers"),
        ({"strengths": (0.4, 0.4, 0.4, 0.6)}, "hue"),
        ({"strengths": (1e7, 0.4, 0.4, 0.1)}, "strengths must be at most 999,999"),
        ({"perturb": ({"blur": 7},)}, "write a name, as blur or blur=2"),
        ({"val_crop": 0.0}, "val_crop"),
        ({"decode_hardware": 1.5}, r"decode_hardware must lie in \[0, 1\]"),
        ({"dtype": torch.float64}, "dtype"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"device": "cpuu"}, "device"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 5, "world_size": 2}, "multiple of 2 ranks"),
        ({"batch_size": 1, "world_size": 2, "train": False}, "multiple of 2 ranks"),
    ],
)
def test_mistakes(image_folder: Path, wrong: dict[str, Any], said: str) -> None:
    options = {"pipeline": "cpu", "batch_size": 4, "resolution": 32} | wrong
    with pytest.raises(UserError, match=said):
        build(options.pop("pipeline"), image_folder / "train", **options)


def test_numbers_of_numpy_are_numbers(image_folder: Path) -> None:
    def batch(seed: Any, strength: Any) -> PairBatch:
        options = {"seed": seed, "strengths": (strength, 0.4, 0.4, 0.1), "perturb": ("gamma",)}
        loader = build("cpu", image_folder / "train", batch_size=4, resolution=16, **options)
        first = next(iter(loader))
        loader.close()
        return first

    ours, theirs = batch(np.int64(3), np.float64(0.5)), batch(3, 0.5)
    settings = Settings(batch_size=4, resolution=16, seed=np.int64(3), strengths=np.full(4, 0.5))
    assert type(settings.seed) is int
    assert settings.strengths == (0.5, 0.5, 0.5, 0.5)
    assert torch.equal(ours.perturbed, theirs.perturbed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(image_folder: Path, dtype: torch.dtype) -> None:
    def drawn() -> list[torch.Tensor]:
        scale_and_shift.cache_clear()
        loader = build("cpu", image_folder / "train", batch_size=4, resolution=16)
        batch = next(iter(loader))
        loader.close()
        assert batch.perturbed is not None
        images = torch.arange(192, dtype=torch.uint8).view(1, 8, 8, 3)
        jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
        factors = jitter.sample(1, torch.Generator().manual_seed(0))
        views = normalize(images, IMAGENET_MEAN, IMAGENET_STD, impl="reference")
        return [batch.clean, batch.perturbed, factors, views]

    expected = drawn()
    torch.set_default_dtype(dtype)
    try:
        found = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
        scale_and_shift.cache_clear()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_every_option_is_in_the_signature_and_in_the_help() -> None:
    options = [field.name for field in fields(Settings)]
    assert list(inspect.signature(build).parameters) == ["pipeline", "data", *options]
    help_ = inspect.getdoc(build)
    assert help_
    assert all(re.search(rf"^    (\w+, )?{name}(, \w+)?: ", help_, re.M) for name in options)
    with pytest.raises(TypeError, match="crp"):
        build("cpu", "nowhere", batch_size=1, resolution=8, crp="pad")  # type: ignore[call-arg]


def test_seeds_above_float64_are_told_apart() -> None:
    seeds = (2**63, 2**63 + 1, 2**64 - 1)
    assert len({keyed.raw(seed, 0, 0, 1)[0] for seed in seeds}) == 3


def test_gather_of_equal_sizes_equals_one_image_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            image = photograph(10 * i + ord(label), (32, 32))
            (tmp_path / label / f"{i}.png").write_bytes(encoded(image, "PNG"))

    def batches() -> list[Any]:
        loader = build("memory", scan(tmp_path), batch_size=6, resolution=32, crop="pad")
        assert isinstance(loader, MemoryPipeline)
        if slow:
            loader._square = None
        else:
            assert loader._square is not None
        return list(loader)

    slow = False
    fast_batches = batches()
    slow = True
    for a, b in zip(fast_batches, batches(), strict=True):
        assert torch.equal(a.clean, b.clean)
        assert np.array_equal(a.index, b.index)
