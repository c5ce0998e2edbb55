"""What a classifier answers to images in other colors, at the pipelines' and kernels' speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.distributed.devices import autocast
from fastsc.errors import UserError, one_line
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays
from fastsc.kernels import normalize, perturb
from fastsc.kernels.color import IDENTITY
from fastsc.pipelines import Pipeline, keyed
from fastsc.pipelines.progress import tracked
from fastsc.pipelines.threads import default_workers

KINDS = ("brightness", "contrast", "saturation", "hue")  # columns of the factors
MAX_HUE = 0.5  # turns: half the color circle
Indices = NDArray[np.int64]
Factors = NDArray[np.float32]  # (n, 4)
Distances = NDArray[np.float64]


class Response(NamedTuple):
    """What a classifier answers to n views, float32 on the CPU."""

    features: Tensor  # (n, D)
    logits: Tensor  # (n, C)

    @property
    def predicted(self) -> Tensor:
        """(n,) int64: the best class."""
        return self.logits.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """(n,) float32: the softmax probability of the best class."""
        return self.logits.softmax(1).amax(1)


class Images(NamedTuple):
    """A batch of a split as it is decoded."""

    pixels: Tensor  # (n, R, R, 3) uint8, on the loader's device
    rows: slice  # of the indices that were asked for


class Viewer:
    """A classifier on a loader's images.

    Args:
        model: On the loader's device, in eval mode.
        loader: A validation pipeline (`build(..., train=False)`): its mean, std, resolution and
            dtype are how the model sees images. With a dtype of 16 bits the model runs under
            autocast; its responses are float32 all the same.
        dtype: In place of the loader's, for what wants float32 whatever was asked for.
    """

    def __init__(
        self, model: Classifier, loader: Pipeline, dtype: torch.dtype | None = None
    ) -> None:
        settings = replace(loader.settings, dtype=dtype or loader.settings.dtype)
        assert not settings.train, "a question needs a validation loader: build(..., train=False)"
        self.model, self.loader, self.settings = model.eval(), loader, settings
        self._threads = settings.n_workers if loader.device.type == "cpu" else default_workers()
        self._autocast = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(settings.dtype, "fp32")

    def images(self, index: Indices, title: str) -> Iterator[Images]:
        """The images of dataset indices (m,), batch by batch, in order, with a progress bar.

        Args:
            index: Different dataset indices that the loader's index can use.
            title: Of the bar.

        Raises:
            UserError: An image does not decode: a question's n is what it says it is.
        """
        total = -(-len(index) // self.settings.batch_size)
        done = 0
        for decoded in tracked(self.loader.decoded(index), title, total):
            for bad in decoded.bad:  # though --on-bad-image skip has left out the broken ones
                raise UserError(f"{bad.path}: {bad.reason}; it decodes only in part: remove it")
            rows = slice(done, done + len(decoded.index))
            done = rows.stop
            yield Images(decoded.images, rows)

    def columns(
        self, index: Indices, title: str, answer: Callable[[Images], Mapping[str, Tensor]]
    ) -> Arrays:
        """What `answer` makes of the batches of `images`: columns (m, …)."""
        parts = [answer(images) for images in self.images(index, title)]
        return {name: torch.cat([part[name].cpu() for part in parts]).numpy() for name in parts[0]}

    def view(self, pixels: Tensor, factors: Factors | None = None) -> Tensor:
        """(n, R, R, 3) uint8 -> (n, 3, R, R) normalized; in other colors with factors (n, 4)."""
        s = self.settings
        if factors is None:
            return normalize(pixels, s.mean, s.std, dtype=s.dtype, threads=self._threads)
        table = torch.from_numpy(np.ascontiguousarray(factors, np.float32)).to(pixels.device)
        return perturb(pixels, table, s.mean, s.std, dtype=s.dtype, threads=self._threads)

    @torch.inference_mode()
    def respond(self, pixels: Tensor, factors: Factors | None = None) -> Response:
        """The answer to a batch of `images`, unchanged or with a row of factors per image."""
        with autocast(self.loader.device, self._autocast):  # type: ignore[arg-type]
            features, logits = self.ask(self.view(pixels, factors))
        return Response(features.float().cpu(), logits.float().cpu())

    def ask(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """The model's features (n, D) and logits (n, C) of normalized views (n, 3, R, R).

        Raises:
            UserError: The model fails on them, or its answers are not finite.
        """
        name = self.model.name
        with one_line(f"model {name} fails on a batch of {len(view)} images", (Exception,)):
            features, logits = self.model(view)
        finite = features.isfinite().flatten(1).all(1) & logits.isfinite().all(1)
        if not finite.all():
            raise UserError(
                f"model {name}: what it answers is not finite for {int((~finite).sum())} of "
                f"{len(view)} images, which no figure can be made of; try --precision fp32, or "
                "another preprocessing"
            )
        return features, logits

    def picture(
        self, index: int, factors: tuple[float, float, float, float] | None = None
    ) -> NDArray[np.uint8]:
        """(R, R, 3) RGB of a dataset index as the model sees it, unchanged or in other colors."""
        ((pixels, _),) = self.images(np.array([index]), "")
        if factors is not None:
            table = torch.tensor([factors], device=pixels.device)
            view = perturb(pixels, table, (0, 0, 0), (1, 1, 1)).permute(0, 2, 3, 1)
            pixels = (view * 255).round().clamp(0, 255).byte()
        rgb: NDArray[np.uint8] = pixels[0].cpu().numpy()
        return rgb


def choose(loader: Pipeline, n: int | None, seed: int, among: Indices | None = None) -> Indices:
    """A keyed choice of at most n dataset indices, sorted; the same for every model and pipeline.

    A larger n keeps what a smaller one chose. None: all of them.

    Args:
        among: Dataset indices to choose from. Default: all that can be used.
    """
    usable = loader.index.usable if among is None else among
    chosen = keyed.order(seed, keyed.VALIDATION_EPOCH, usable, len(loader.index))
    return np.sort(chosen[:n])


def following(index: Indices, loader: Pipeline) -> Indices:
    """Of each of the dataset indices (m,) the row of another one: (m,), one fixed keyed cycle.

    What distances between different images are taken to, as in validation during training.
    """
    cycle = keyed.cycle(index, len(loader.index))
    rows = np.empty_like(cycle)
    rows[cycle] = np.roll(cycle, -1)
    return rows


def between(features: NDArray[np.float32], index: Indices, loader: Pipeline) -> Distances:
    """(n,) how far the features (n, D) of each image lie from those of the one `following`."""
    exact = features.astype(np.float64)
    distances: Distances = np.linalg.norm(exact - exact[following(index, loader)], axis=1)
    return distances


def slices(n: int, size: int) -> list[slice]:
    """Rows 0 … n - 1 in groups of at most `size`."""
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


def shares(index: Indices, size: int) -> list[Indices]:
    """Dataset indices in groups of at most `size`."""
    return [index[rows] for rows in slices(len(index), size)]


def ends(kind: str, strength: float) -> tuple[float, float]:
    """Where a kind ends at a strength, down and up: factors, for hue turns."""
    if kind == "hue":
        return -min(strength, MAX_HUE), min(strength, MAX_HUE)
    return max(0.0, 1 - strength), 1 + strength


def became(before: str, after: str) -> str:
    """ "cat → dog", "cat → the same"."""
    return f"{before} → {'the same' if before == after else after}"


def one_kind(kind: str, value: float | NDArray[np.float32], n: int) -> Factors:
    """(n, 4) factors at which nothing but one kind changes: a factor, or a hue shift in turns."""
    factors = np.tile(np.array(IDENTITY, np.float32), (n, 1))
    factors[:, KINDS.index(kind)] = value
    return factors


def changes(clean: Response, perturbed: Response) -> Arrays:
    """Of n views each: ‖f - f'‖₂, whether the prediction flips, and how the confidence in the clean
    prediction changes."""
    best = clean.predicted[:, None]
    before, after = (r.logits.softmax(1).gather(1, best)[:, 0] for r in (clean, perturbed))
    return {
        "moved": (clean.features - perturbed.features).norm(dim=1).double().numpy(),
        "flipped": (clean.predicted != perturbed.predicted).double().numpy(),
        "confidence_change": (after - before).double().numpy(),
    }
