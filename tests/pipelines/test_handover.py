"""The side stream: one batch ahead, nothing lost at an error; and the pipelines on a GPU."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from fastsc.pipelines import Index, PairBatch, build
from fastsc.pipelines.handover import SideStream
from tests.pipelines.conftest import opened

CPU = torch.device("cpu")  # torch's streams of a CPU order nothing; the calls are the same
Made = Generator[tuple[str, list[torch.Tensor]], None, None]


class Batches:
    """A generator that notes what has been asked of it."""

    def __init__(self, n: int, fails_at: int | None = None) -> None:
        self.n, self.fails_at = n, fails_at
        self.made, self.closed = 0, False

    def __call__(self) -> Made:
        try:
            for k in range(self.n):
                if k == self.fails_at:
                    raise ValueError("batch 2 is broken")
                self.made += 1
                yield f"batch {k}", [torch.zeros(1)]
        finally:
            self.closed = True


def test_the_next_is_made_before_one_is_handed_over() -> None:
    batches = Batches(4)
    ahead = SideStream(CPU).ahead(batches())
    made = [(item, batches.made) for item, _ in ahead]
    assert made == [("batch 0", 2), ("batch 1", 3), ("batch 2", 4), ("batch 3", 4)]
    assert batches.closed


@pytest.mark.parametrize("n", [0, 1])
def test_short_epochs(n: int) -> None:
    assert [item for item, _ in SideStream(CPU).ahead(Batches(n)())] == ["batch 0"][:n]


def test_an_error_comes_after_what_was_made_before_it() -> None:
    seen = list[str]()
    with pytest.raises(ValueError, match="batch 2 is broken"):
        seen.extend(item for item, _ in SideStream(CPU).ahead(Batches(5, fails_at=2)()))
    assert seen == ["batch 0", "batch 1"]


def test_closing_it_closes_the_generator() -> None:
    batches = Batches(5)
    ahead = SideStream(CPU).ahead(batches())
    next(ahead)
    ahead.close()
    assert batches.closed
    assert batches.made == 2


# ---- on a GPU ------------------------------------------------------------------------------------


def epoch_on(device: str, backend: str, index: Index) -> list[PairBatch]:
    """All batches of an epoch; on a GPU the consumer's stream is kept behind the loader's."""
    loader = build(backend, index, batch_size=5, resolution=48, device=device, timeout=60)
    kept, copies = list[PairBatch](), list[PairBatch]()
    for batch in loader:
        if device == "cuda":
            torch.cuda._sleep(20_000_000)
        kept.append(batch)
        copies.append(PairBatch(*(None if x is None else x.clone() for x in batch)))  # type: ignore[arg-type]
    loader.close()
    for one, copy in zip(kept, copies, strict=True):
        assert torch.equal(one.clean, copy.clean), "a batch was overwritten"
    return copies


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_gpu_are_those_on_the_cpu(backend: str, folder: Path) -> None:
    index = opened(backend, folder / "train")
    for one, other in zip(
        epoch_on("cpu", backend, index), epoch_on("cuda", backend, index), strict=True
    ):
        assert torch.equal(one.index, other.index.cpu())
        assert torch.equal(one.target, other.target.cpu())
        for a, b in ((one.clean, other.clean), (one.perturbed, other.perturbed)):
            assert a is not None
            assert b is not None
            assert b.is_contiguous(memory_format=torch.channels_last)
            # nvJPEG's transform and DALI's GPU resize round otherwise than the CPU's.
            assert (a - b.cpu()).abs().mean() < 0.05
