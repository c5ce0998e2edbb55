"""Consistency losses that others train with, from our options: AugMix's and logit pairing.

timm's JsdCrossEntropy clamps the mean distribution m = (p + q) / 2 at 1e-7 before its logarithm;
ours takes it as it is. So the two are the same formula wherever every m is at least 1e-7. Below
that, timm's divergence misses m ln(1e-7 / m) of each clamped class, which is at most 1e-7 / e: ours
is larger by 0 to 3.7e-8 nats a class (3.7e-5 for ImageNet's thousand), times alpha.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from timm.loss import JsdCrossEntropy
from torch import Tensor
from torch.nn import functional

from fastsc import ContinuityLoss
from fastsc.config.options import parse
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import PairBatch
from fastsc.training.alpha import Alpha
from fastsc.training.optimizer import lr_at
from fastsc.training.setup import prepare
from fastsc.training.step import Step

N, C, ALPHA = 6, 10, 12.0
CLAMP = 1e-7  # timm's
SMALL: dict[str, Any] = {
    "model": "fastsc:resnet8w4", "batch_size": N, "lr": 10.0, "warmup_epochs": 0.0, "momentum": 0.0,
    "weight_decay": 0.0, "nesterov": False,
}  # fmt: skip
AUGMIX = ["--ds", "js", "--ds-at", "logits", "--ce-views", "clean", "--alpha", "12",
          "--alpha-warmup-epochs", "0"]  # fmt: skip
PAIRING = ["--ds", "mse", "--ds-at", "logits", "--ce-views", "both", "--alpha", "0.5",
           "--alpha-warmup-epochs", "0"]  # fmt: skip


def logits(classes: int, scale: float, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Of both views, independent of each other, uniform in [-scale, scale]; and classes."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, N, classes, generator=generator, dtype=torch.float64)
    clean, perturbed = ((2 * draw - 1) * scale).to(dtype)
    return clean, perturbed, torch.randint(classes, (N,), generator=generator)


def ours(smoothing: float, clean: Tensor, perturbed: Tensor, target: Tensor) -> Tensor:
    loss_of = ContinuityLoss(
        ALPHA, "js", at="logits", ce_views="clean", label_smoothing=smoothing, impl="reference"
    )
    return loss_of(clean, perturbed, target).loss


def timms(smoothing: float, clean: Tensor, perturbed: Tensor, target: Tensor) -> Tensor:
    loss_of = JsdCrossEntropy(num_splits=2, alpha=ALPHA, smoothing=smoothing)
    return loss_of(torch.cat([clean, perturbed]), torch.cat([target, target]))


def outcome(loss: Any, smoothing: float, *views: Tensor, target: Tensor) -> list[Tensor]:
    """The loss and its gradients in both views' logits."""
    leaves = [x.detach().clone().requires_grad_() for x in views]
    value = loss(smoothing, *leaves, target)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def mean_probability(clean: Tensor, perturbed: Tensor) -> Tensor:
    return (clean.double().softmax(1) + perturbed.double().softmax(1)) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("classes", [2, C, 100])
def test_augmix_is_timms(
    classes: int, scale: float, dtype: torch.dtype, rtol: float, smoothing: float
) -> None:
    for seed in range(3):
        clean, perturbed, target = logits(classes, scale, dtype, seed)
        assert mean_probability(clean, perturbed).min() >= CLAMP
        found, theirs = (
            outcome(loss, smoothing, clean, perturbed, target=target) for loss in (ours, timms)
        )
        for a, b in zip(found, theirs, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_augmix_is_timms_at_the_edges(smoothing: float) -> None:
    """Sure and wrong, sure and right, equal views, no opinion, a large common part."""
    sure = functional.one_hot(torch.arange(N) % C, C).double() * 13
    clean, perturbed = sure.clone(), sure.clone()
    perturbed[0] = sure[1]
    clean[3] = perturbed[4] = 0
    clean[5] += 1e4
    target = torch.tensor([0, 2, 2, 3, 4, 5])
    assert mean_probability(clean, perturbed).min() >= CLAMP
    found, theirs = (
        outcome(loss, smoothing, clean, perturbed, target=target) for loss in (ours, timms)
    )
    for a, b in zip(found, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert float(found[0]) > ALPHA * 0.99 * math.log(2) / N, "one pair shares nothing"


@pytest.mark.parametrize("scale", [15.0, 30.0, 150.0])
@pytest.mark.parametrize("classes", [C, 1000])
def test_what_timms_clamping_takes_away(classes: int, scale: float) -> None:
    """Where it binds: by which amount in the value, and within which bounds in the gradient.

    With c = 1e-7, a clamped class adds to timm's derivative by p_k, beside ours, (1 - ln(c/m)) / 2,
    of which p_k <= 2m leaves at most c; the softmax's own derivative spreads p_j times the sum of
    them over all classes.
    """
    clean, perturbed, target = logits(classes, scale, torch.float64)
    m = mean_probability(clean, perturbed)
    clamped = m < CLAMP
    assert clamped.any()
    found, theirs = (outcome(loss, 0.0, clean, perturbed, target=target) for loss in (ours, timms))
    missed = torch.where(clamped, m * (CLAMP / m).log(), 0.0).sum(1)
    assert 0 < missed.max() <= classes * CLAMP / math.e
    assert float(found[0] - theirs[0]) == pytest.approx(ALPHA * float(missed.mean()), abs=1e-12)
    for a, b in zip(found[1:], theirs[1:], strict=True):
        assert 0 < (a - b).abs().max() <= (classes + 1) * CLAMP * ALPHA / N


@pytest.mark.parametrize("size", [120.0, 1e4, 1e30])
def test_probabilities_of_zero(size: float) -> None:
    """Softmaxes that underflow: timm's value is ours to the bound, and our gradient stays finite.

    timm's is 0/0 there, in the logarithm of the target of torch's kl_div.
    """
    clean = functional.one_hot(torch.arange(N) % C, C).float() * size
    perturbed = clean.roll(1, 0)
    target = torch.arange(N)
    assert (clean.softmax(1) == 0).any()
    value, *gradients = outcome(ours, 0.0, clean, perturbed, target=target)
    bound = ALPHA * C * CLAMP / math.e + 1e-5  # float32
    assert float(value) == pytest.approx(float(timms(0.0, clean, perturbed, target)), abs=bound)
    assert float(value) == pytest.approx(ALPHA * math.log(2), rel=1e-6)
    assert all(grad.isfinite().all() for grad in gradients)


# --- the training step ----------------------------------------------------------------------------


def pairing(alpha: float, clean: Tensor, perturbed: Tensor, target: Tensor) -> Tensor:
    """As its authors' code has it: CE of all logits, plus alpha times the mean square."""
    ce = functional.cross_entropy(torch.cat([clean, perturbed]), torch.cat([target, target]))
    return ce + alpha * functional.mse_loss(clean, perturbed)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AUGMIX, lambda *views: timms(0.0, *views)),
        ([*AUGMIX, "--label-smoothing", "0.1"], lambda *views: timms(0.1, *views)),
        (PAIRING, lambda *views: pairing(0.5, *views)),
    ],
    ids=["augmix", "augmix with smoothing", "logit pairing"],
)
def test_a_training_step(options: list[str], expected: Any) -> None:
    """From the command line to a step: loss and gradient are the other's on the same logits."""
    config = parse(["cifar100", "--data", "DIR", *options]).replace(**SMALL)
    cpu, ranks, method = torch.device("cpu"), Ranks(), config.method
    step = Step(config, prepare(config, C, cpu, "fp32", ranks), cpu, "fp32", ranks)
    lr = lr_at(0, config.optim, 100)
    alpha = Alpha(method, 100, config.optim.epochs).alpha(0)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(N, 3, 32, 32, generator=generator)
    perturbed = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    target = torch.randint(C, (N,), generator=generator)

    twin = copy.deepcopy(step.model).train()
    both = twin(torch.cat([clean, perturbed])).logits
    loss = expected(both[:N], both[N:], target)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])

    batch = PairBatch(clean, perturbed, target, torch.arange(N))
    measured = step.train_step(batch, lr=lr, alpha=alpha, measured=True)
    assert measured is not None
    figures = measured.read()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for one, other in zip(step.model.parameters(), twin.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one, other - lr * other.grad, rtol=1e-4, atol=1e-6)
    assert lr > 0.1
