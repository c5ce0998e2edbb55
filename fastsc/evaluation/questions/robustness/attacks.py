"""Attacks of torchattacks on a classifier: images on [0, 1], the normalization inside the model.

The library wants contiguous images, draws from torch's global generator, runs no restarts and gives
back the last iterate, wrong or not; its cross-entropy is of whatever the model returns. All of that
is seen to here, and whether an image was fooled is asked of the model itself afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.cli.packages import installed
from fastsc.evaluation.models.classifier import Classifier
from fastsc.models.probe import device_of
from fastsc.pipelines.progress import tracked

Norm = Literal["linf", "l2"]
Name = Literal["fgsm", "pgd", "square", "noise"]

STEPS = 10  # of projected gradient descent, each of 2.5 / STEPS of the radius (Madry et al.)
STRIDE = 2.5
QUERIES = 100  # of Square after its start, an image
SUREST = 12.0  # nats between the two best classes, beyond which a gradient attack softens them
TINY = 1e-30  # added to a gradient's length; torchattacks' 1e-10 is longer than some gradients
LEVEL = 1 / 255


@dataclass(frozen=True)
class Attack:
    """An attack, and how large a change it may make.

    Attributes:
        name: "fgsm" (Goodfellow et al., arXiv 1412.6572), "pgd" (Madry et al., 1706.06083), both
            by gradients; "square" (Andriushchenko et al., 1912.00049), by queries alone; "noise":
            where PGD starts, uniform in the ball.
        norm: "linf" or "l2"; L2 for "pgd" only.
        levels: Ascending. Of L-inf: the largest change of a value, in 8-bit levels. Of L2: the RMS
            over all values, in 8-bit levels too.
        tries: Restarts, each of which begins elsewhere.
    """

    name: Name
    norm: Norm
    levels: tuple[float, ...]
    tries: int = 1

    def __post_init__(self) -> None:
        assert self.norm == "linf" or self.name == "pgd", self
        assert all(a < b for a, b in zip(self.levels, self.levels[1:])), self.levels

    @property
    def key(self) -> str:
        """ "pgd/linf": its name in those of measures and columns."""
        return f"{self.name}/{self.norm}"


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found of m images.

    Attributes:
        least: (m,) float64, the first of its levels at which it fooled the model; 0 where the model
            is wrong anyway, inf where no level did.
        images: (m, 3, R, R) float32, the image that fooled it there, else the unchanged one.
        predicted: (m,) int64, what that one is taken for.
        confidence: (m,) float32, with which softmax probability.
    """

    least: NDArray[np.float64]
    images: Tensor
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]


def possible(
    target: Target, attacks: Sequence[Attack], resolution: int
) -> tuple[tuple[Attack, ...], str | None]:
    """Those of the attacks that can be made here, and why not all can."""
    if not installed("torchattacks"):
        # With its needs pip would put an old requests, and with that an old idna, in their place.
        return (), "attacks: they need torchattacks: pip install --no-deps torchattacks"
    if not target.derivable(resolution):
        blind = tuple(attack for attack in attacks if attack.name in ("square", "noise"))
        return blind, "fgsm and pgd: the model cannot be derived; take its differentiable form"
    return tuple(attacks), None


def radius(norm: Norm, level: float, resolution: int) -> float:
    """The ball's radius on [0, 1]: of an L2 one the length ‖δ‖₂ of a change with that RMS.

    L2 levels are comparable between resolutions: level 2 is 0.43 at 32 px and 3.04 at 224 px, next
    to the usual 0.5 of CIFAR and 3 of ImageNet.
    """
    return level * LEVEL * (math.sqrt(3) * resolution if norm == "l2" else 1)


class PixelModel(nn.Module):
    """forward(x (n, 3, R, R) float32 on [0, 1]) -> logits (n, C), of a classifier in eval mode.

    Args:
        model: On the device of its images.
        mean, std: Of R, G, B, with which it wants them normalized.
        softened: For attacks by gradients. Logits are float64, and divided by their own temperature
            where the two best classes are more than SUREST nats apart: the cross-entropy of a sure
            image would round to 0 and its gradient with it, a mask that is none of the model's. The
            order of the classes stays, and the temperature has no gradient. A model that lets no
            gradient through has one of zeros.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Classifier,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        softened: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.softened = model, softened
        device = device_of(model)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device=device)[:, None, None])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        # Flat in between: its gradient comes back contiguous, which torchattacks' views rely on.
        flat = x.flatten(1)
        view = (flat.view(x.shape) - self.mean) / self.std
        logits: Tensor = self.model(view.contiguous(memory_format=torch.channels_last))[1]
        if logits.is_inference():
            logits = logits.clone()  # else nobody may write into what comes of it
        if not self.softened:
            return logits.float()
        wide = logits.double()
        best = wide.detach().topk(2, dim=1).values
        temperature = ((best[:, 0] - best[:, 1]) / SUREST).clamp(min=1)
        return wide / temperature[:, None] + 0 * flat.sum(1, keepdim=True)


class Target:
    """A classifier under attack.

    Args:
        model, mean, std: See `PixelModel`.
    """

    def __init__(
        self,
        model: Classifier,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.plain = PixelModel(model, mean, std)
        self.softened = PixelModel(model, mean, std, softened=True)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(n, 3, R, R) on [0, 1] -> (n, C) float32."""
        return self.plain(images)

    def has_gradient(self, images: Tensor, labels: Tensor) -> NDArray[np.bool_]:
        """(n,): whether the loss's gradient at an image is finite and anything but zeros."""
        x = images.clone().requires_grad_()
        try:
            with torch.enable_grad():
                loss = F.cross_entropy(self.softened(x), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
        except RuntimeError:  # it cannot be derived
            return np.zeros(len(images), np.bool_)
        flat = gradient.flatten(1)
        useful: NDArray[np.bool_] = (flat.any(1) & flat.isfinite().all(1)).cpu().numpy()
        return useful

    def derivable(self, resolution: int) -> bool:
        """Whether a backward pass can be made at all, whatever its gradient is."""
        noise = torch.rand(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
        x = noise.to(self.plain.mean.device).requires_grad_()
        try:
            with torch.enable_grad():
                torch.autograd.grad(self.softened(x).sum(), x)
        except RuntimeError:
            return False
        return True

    def perturb(
        self, attack: Attack, images: Tensor, labels: Tensor, level: float, seed: int
    ) -> Tensor:
        """One try of an attack.

        Args:
            attack: Which.
            images: (n, 3, R, R) float32 on [0, 1].
            labels: (n,) int64, the right outputs.
            level: See `Attack.levels`; 0 changes nothing.
            seed: Of its draws; torch's own generators stay as they were.

        Returns:
            Like images, in the ball and on [0, 1], to the rounding of float32.
        """
        assert images.is_contiguous()
        eps = radius(attack.norm, level, images.shape[-1])
        if not eps:
            return images.clone()
        with _drawing(images.device, seed):
            method = self._method(attack, eps, seed)
            method.set_device(images.device)
            adversarial: Tensor = method(images, labels).detach()
        # Along a gradient that is not finite an attack gets lost, and has found nothing.
        lost = ~adversarial.isfinite().flatten(1).all(1)
        adversarial = torch.where(lost[:, None, None, None], images, adversarial)
        assert ((adversarial >= 0) & (adversarial <= 1)).all(), f"{attack}: not on [0, 1]"
        change = (adversarial - images).flatten(1)
        length = change.abs().amax(1) if attack.norm == "linf" else change.norm(dim=1)
        assert (length <= eps * (1 + 1e-4) + 1e-6).all(), f"{attack}: out of the ball"
        return adversarial

    def _method(self, attack: Attack, eps: float, seed: int) -> Any:
        import torchattacks

        if attack.name == "square":
            return torchattacks.Square(
                self.plain, norm="Linf", eps=eps, n_queries=QUERIES, seed=seed
            )
        if attack.name == "fgsm":
            return torchattacks.FGSM(self.softened, eps=eps)
        steps = STEPS if attack.name == "pgd" else 0
        options = {"eps": eps, "alpha": STRIDE * eps / STEPS, "steps": steps}
        if attack.norm == "l2":
            return torchattacks.PGDL2(self.softened, **options, eps_for_division=TINY)
        return torchattacks.PGD(self.softened, **options)

    def walk(
        self,
        attack: Attack,
        images: Tensor,
        labels: Tensor,
        *,
        key: tuple[int, ...],
        title: str = "",
    ) -> AttackResult:
        """Raises the level until the model is fooled.

        An image that was fooled is left alone from there on, as larger balls contain what was
        found; one that is wrong unchanged is never attacked. What is found is the attack's own, of
        all its tries.

        Args:
            attack, images, labels: As in `perturb`.
            key: Of its draws, with the attack, the level and the try; not negative. They also
                depend on which of these images are still right.
            title: Of the progress bar.
        """
        logits = self.logits(images)
        predicted, confidence = logits.argmax(1), logits.softmax(1).amax(1)
        least = torch.where(predicted == labels, torch.inf, 0.0).double()
        adversarial = images.clone()
        for place, level in enumerate(tracked(attack.levels, title, len(attack.levels))):
            for attempt in range(attack.tries):
                rows = (predicted == labels).nonzero()[:, 0]
                if not len(rows):
                    break
                of, seed = labels[rows], _seed(key, attack, place, attempt)
                changed = self.perturb(attack, images[rows], of, level, seed)
                logits = self.logits(changed)
                fooled = logits.argmax(1) != of
                at = rows[fooled]
                least[at], adversarial[at] = level, changed[fooled]
                predicted[at] = logits.argmax(1)[fooled]
                confidence[at] = logits.softmax(1).amax(1)[fooled]
        return AttackResult(
            least.cpu().numpy(),
            adversarial,
            predicted.cpu().numpy(),
            confidence.cpu().numpy(),
        )


@contextmanager
def _drawing(device: torch.device, seed: int) -> Iterator[None]:
    """torch's generators seeded, and put back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _seed(key: tuple[int, ...], attack: Attack, level: int, attempt: int) -> int:
    """Of one try: 63 bits out of all that tells it from the others."""
    words = np.random.SeedSequence([*key, *attack.key.encode(), level, attempt])
    return int(words.generate_state(1, np.uint64)[0] >> 1)
