"""What the tests start under torchrun: the training command, and what each rank saw and ended with.

python rank_worker.py DUMP train WORDS…    the command; DUMP/rankR.pt: indices, weights, buffers
python rank_worker.py DUMP pieces          the ranks' own operations, each against one process's
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import fastsc.train
from fastsc import ContinuityLoss
from fastsc.distributed.ranks import Ranks
from fastsc.errors import PeerError, UserError
from fastsc.kernels.distance import between_distance
from fastsc.models.norms import ViewBatchNorm2d, Views
from fastsc.train import main
from fastsc.training.state import Training
from fastsc.training.step import Step


def train(dump: Path, words: list[str]) -> int:
    """Runs the command with two observers in it; "{rank}" in a word is this rank's number.

    --no-page leaves out what a repair ends with, which takes longer than the rest.
    """
    words = [word.replace("{rank}", str(Ranks().rank)) for word in words]
    if "--no-page" in words:
        words.remove("--no-page")
        fastsc.train.conclude = lambda *_: None
    seen: dict[str, Any] = {"index": [], "alpha": []}
    step, close = Step.train_step, Training.close

    def observed_step(self: Step, batch: Any, **options: Any) -> Any:
        seen["index"].append(batch.index.clone())
        seen["alpha"].append(options["alpha"])
        return step(self, batch, **options)

    def observed_close(self: Training) -> None:
        model = self.core.model
        seen["state"] = {k: v.clone() for k, v in model.net.state_dict().items()}
        ema = self.core.ema
        seen["ema"] = None if ema is None else dict(ema.net.state_dict())
        close(self)

    Step.train_step, Training.close = observed_step, observed_close  # type: ignore[method-assign]
    status = seen["status"] = main(words)
    torch.save(seen, part := dump / f"{Ranks().rank}.part")
    part.rename(dump / f"rank{Ranks().rank}.pt")  # torchrun may end this process at any moment
    return status


def pieces() -> None:
    """Each operation of Ranks, and batch norm over ranks, against one process with all rows."""
    ranks = Ranks()
    with ranks.connected(torch.device("cpu")):
        w, r = ranks.world_size, ranks.rank
        generator = torch.Generator().manual_seed(0)
        whole = torch.randn(4 * w, 6, dtype=torch.float64, generator=generator)
        check_gather(ranks, whole)
        check_loss(ranks, whole)
        check_batch_norm(ranks, generator)
        assert ranks.mean(torch.tensor([float(r)])).item() == (w - 1) / 2
        assert ranks.max(float(r)) == w - 1
        assert ranks.agree(action=2 if r == 1 else 0) == 2
        assert ranks.broadcast(r) == 0
        assert ranks.gather_values(r) == (list(range(w)) if ranks.is_main else None)
        check_local_first(ranks)
        check_errors(ranks)


def check_gather(ranks: Ranks, whole: torch.Tensor) -> None:
    """The scale of kind relative over all ranks: value and gradient."""
    one = whole.clone().requires_grad_()
    between_distance(one).backward()
    mine = whole[ranks.rank :: ranks.world_size].clone().requires_grad_()
    gathered = ranks.gather(mine)
    assert torch.equal(gathered, whole)
    # Each rank's loss is the whole one: DDP's mean of equal gradients leaves it as it is.
    between_distance(gathered).backward()
    assert one.grad is not None
    assert mine.grad is not None
    expected = one.grad[ranks.rank :: ranks.world_size] * ranks.world_size
    torch.testing.assert_close(mine.grad, expected, rtol=1e-12, atol=1e-14)


def check_loss(ranks: Ranks, whole: torch.Tensor) -> None:
    """The kinds that compare images: the mean over the ranks is one process' loss."""
    w, r = ranks.world_size, ranks.rank
    views = whole, whole + 0.3 * whole.roll(1, 1).tanh()
    target = torch.arange(len(whole)) % 6
    for kind in ("relative", "sq"):
        ones = [view.clone().requires_grad_() for view in views]
        expected = ContinuityLoss(2.0, kind, at="logits")(*ones, target).loss
        expected.backward()
        shares = [view[r::w].clone().requires_grad_() for view in views]
        loss_of = ContinuityLoss(2.0, kind, at="logits", gather=ranks.gather)
        loss = loss_of(*shares, target[r::w]).loss
        loss.backward()
        torch.testing.assert_close(ranks.mean(loss.detach()), expected.detach())
        for share, one in zip(shares, ones, strict=True):
            assert share.grad is not None
            assert one.grad is not None
            # DDP takes the mean of the ranks' gradients.
            torch.testing.assert_close(share.grad / w, one.grad[r::w], rtol=1e-10, atol=1e-12)


def check_batch_norm(ranks: Ranks, generator: torch.Generator) -> None:
    """Values, gradients and running statistics of both kinds of view over all ranks."""
    w, r, n = ranks.world_size, ranks.rank, 3
    views = [torch.randn(n * w, 4, 5, 5, dtype=torch.float64, generator=generator) for _ in "cp"]
    one, shared = nn.BatchNorm2d(4).double(), Views()
    own = ViewBatchNorm2d.of(nn.BatchNorm2d(4).double(), shared, sync=True)
    ones = [view.clone().requires_grad_() for view in views]
    expected = [functional.silu(one(view)).pow(3) for view in ones]
    sum(out.sum() for out in expected).backward()  # type: ignore[union-attr]
    shares = [view[r::w].clone().requires_grad_() for view in views]
    shared.n_clean, shared.n_rows = n, 2 * n
    found = functional.silu(own(torch.cat(shares))).pow(3)
    found.sum().backward()
    for out, want in zip(found.chunk(2), expected, strict=True):
        torch.testing.assert_close(out, want[r::w], rtol=1e-10, atol=1e-12)
    for share, whole in zip(shares, ones, strict=True):
        assert share.grad is not None
        assert whole.grad is not None
        torch.testing.assert_close(share.grad, whole.grad[r::w], rtol=1e-9, atol=1e-11)
    for buffer, want in zip(own.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(buffer, want, rtol=1e-10, atol=1e-12)
    own.running_mean.fill_(float(r))  # type: ignore[union-attr]
    ranks.average_buffers(own)
    assert own.running_mean.eq((w - 1) / 2).all()  # type: ignore[union-attr]


def check_local_first(ranks: Ranks) -> None:
    """One rank of the machine has left the context before another enters it."""
    with ranks.local_first():
        entered = time.monotonic()
        time.sleep(0.05)
        left = time.monotonic()
    times = ranks.gather_values((entered, left))
    if times is not None:
        assert all(times[0][1] < entered for entered, _ in times[1:])


def check_errors(ranks: Ranks) -> None:
    """One rank's mistake ends all; of several the first rank's speaks."""

    def wrong(guilty: set[int]) -> None:
        if ranks.rank in guilty:
            raise UserError(f"mistake of {ranks.rank}")

    for guilty in ({1}, {0, 1}):
        try:
            with ranks.all_or_none():
                wrong(guilty)
        except PeerError:
            said = "another's"
        except UserError as error:
            said = str(error)
        else:
            said = "nothing"
        first = ranks.rank == min(guilty)
        assert said == (f"mistake of {ranks.rank}" if first else "another's")


if __name__ == "__main__":
    if sys.argv[2] == "pieces":
        pieces()
    else:
        sys.exit(train(Path(sys.argv[1]), sys.argv[3:]))
