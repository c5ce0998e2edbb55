"""Are gradients smooth? How the loss's gradient changes with the light, and how fast features move.

The claim of Wu et al., arXiv 2011.09789, is that a semantically continuous model has smoother
gradients. Here it can be checked in two ways that do not depend on a scale: the angle between the
gradients at an image and at its perturbed view, and the local Lipschitz figure of the features
along each perturbation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import (
    Answer,
    Arrays,
    Example,
    PartCache,
    Rows,
    compute,
    concatenated,
    in_parts,
)
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import (
    KINDS,
    Factors,
    Indices,
    Viewer,
    between,
    choose,
    ends,
    one_kind,
    slices,
)
from fastsc.pipelines import Pipeline

AT_ONCE = 16  # images in one backward pass, whose activations are all held
DERIVED = 64  # images of a part of gradients
WALKED = 16  # images of a part of slopes: 36 views each
STEPS = 8
# RMS of a step on [0, 1], a fortieth of an 8-bit level. Below it the image stands still (a grey
# one, whose hue turns), and what the features do is the rounding of float32.
STILL = 1e-4
N_EXAMPLES = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Gradients(Answer):
    """Answer of `gradients`.

    Attributes:
        between: Mean distance between the features of different images, the unit of the slopes.
        targets: (n,) int64, the output whose cross-entropy is derived, in the order of the table.
    """

    question: ClassVar[str] = "gradients"
    between: float
    targets: NDArray[np.int64]


def gradients(
    model: Classifier,
    loader: Pipeline,
    *,
    labels: NDArray[np.int64] | None = None,
    n: int | None = 64,
    seed: int = 0,
    cache: PartCache = compute,
) -> Gradients:
    """The input gradient at an image and at its perturbed view, and the slopes along each kind.

    Gradient: of the cross-entropy with respect to the image x on [0, 1] (R, G, B, before it is
    normalized), at the clean view and at the perturbed one, both with the same class: the label
    where it is known, else what the clean view is predicted as. `norm_clean` and `norm_perturbed`
    are its L2 norms over all pixels and channels, nats per unit of ‖x‖₂; `cosine` is that of the
    two, 0 where one of them is zero.

    Slopes: each kind is walked alone over the loader's strength s, its factor from max(0, 1 - s) to
    1 + s, hue from -s to s turns, in 8 equal steps. With features f and views x on [0, 1], a step
    from a to b has the slope

        (‖f(x_b) - f(x_a)‖₂ / mean ‖f_i - f_j‖₂) / RMS(x_b - x_a),

    the RMS over pixels and channels, the mean over the n images, each with another of a fixed keyed
    derangement. An image's figure, a lower bound of the local Lipschitz constant along the kind, is
    its largest slope, in image distances per unit of RMS pixel change: at 2, features move by a
    fifth of the distance between images while pixels move by a tenth of the range from black to
    white. Steps of an RMS under 1e-4 count as 0.

    All is computed in float32, whatever the loader's dtype.

    Returns:
        Without the slopes of a kind whose strength is 0, and without any where the features of
        different images are the same; `left_out` says so.

    Raises:
        UserError: The model lets no gradient through.
    """
    # A distance to another image is the slopes' unit.
    index = choose(loader, None if n is None else max(n, 2), seed)
    known = np.full(len(index), -1) if labels is None else labels[index].astype(np.int64)
    assert (known < model.n_classes).all(), "a label that the model has no output for"
    # The rounding of 16 bits is larger than a small step of the colors.
    viewer = Viewer(model, loader, torch.float32)
    settings: dict[str, object] = {
        "n": len(index), "seed": seed, "strengths": loader.settings.strengths,
    }  # fmt: skip
    derived = in_parts(
        cache,
        "gradients",
        slices(len(index), DERIVED),
        settings,
        lambda rows: _derive(viewer, index[rows], known[rows]),
        lambda rows: {"labels": known[rows].tolist()},
    )
    features, targets = derived.pop("features"), derived.pop("targets")
    tables = {"gradients": Rows(index, derived)}
    measures = [
        Measure(Name("gradient_norm"), "mean", "gradients", ("norm_clean",)),
        Measure(Name("gradient_norm_perturbed"), "mean", "gradients", ("norm_perturbed",)),
        Measure(Name("gradient_cosine"), "mean", "gradients", ("cosine",)),
    ]
    scale = float(between(features, index, loader).mean())
    strengths = dict(zip(KINDS, loader.settings.strengths, strict=True))
    kinds = [kind for kind in KINDS if strengths[kind] > 0]
    left_out = [f"lipschitz/{k}: the strength of {k} is 0" for k in KINDS if k not in kinds]
    if not scale > 0:
        kinds, left_out = [], ["lipschitz: no two of the images have different features"]
    if still := int(((derived["norm_clean"] == 0) | (derived["norm_perturbed"] == 0)).sum()):
        left_out.append(
            f"cosine: {still} of {len(index)} images have a gradient of 0, and count as 0"
        )
    if kinds:
        slopes = in_parts(
            cache,
            "slopes",
            slices(len(index), WALKED),
            settings,
            lambda rows: _slopes(viewer, index[rows], kinds),
        )
        tables["slopes"] = Rows(index, {kind: slopes[kind] / scale for kind in kinds})
        measures += [Measure(Name("lipschitz", kind), "mean", "slopes", (kind,)) for kind in kinds]
    return Gradients(
        tables=tables,
        measures=tuple(measures),
        examples=_examples(model, loader, tables["gradients"], targets),
        seed=seed,
        left_out=tuple(left_out),
        between=scale,
        targets=targets,
    )


# --- parts ---------------------------------------------------------------------------------------


def _derive(viewer: Viewer, index: Indices, known: NDArray[np.int64]) -> Arrays:
    """The columns of the table, (m,); "features" (m, D) float32 and "targets" of the clean views.

    known: (m,) the right outputs, -1 for the prediction.
    """
    factors = viewer.loader.plan().factors[index]
    parts = []
    for images in viewer.images(index, "gradients: at images and at their perturbed views"):
        labels, table = torch.from_numpy(known[images.rows]), factors[images.rows]
        size = min(AT_ONCE, viewer.model.passes.backward or AT_ONCE)
        for rows in slices(len(images.pixels), size):
            pixels = images.pixels[rows]
            parts.append(_derive_some(viewer, pixels, labels[rows], table[rows]))
    return concatenated(parts)


def _derive_some(viewer: Viewer, pixels: Tensor, labels: Tensor, factors: Factors) -> Arrays:
    """Like `_derive`, of images (m, R, R, 3) that one backward pass can hold."""
    clean, features, target = input_gradients(viewer, pixels, labels)
    perturbed, _, _ = input_gradients(viewer, pixels, target, factors)
    norms = clean.norm(dim=1), perturbed.norm(dim=1)
    # Each by its own length: the product of two small ones may be 0.
    units = [g / torch.where(r > 0, r, 1.0)[:, None] for g, r in zip((clean, perturbed), norms)]
    cosine = (units[0] * units[1]).sum(1)
    columns = {
        "norm_clean": norms[0],
        "norm_perturbed": norms[1],
        "cosine": cosine.clamp(-1, 1),
        "features": features,
        "targets": target,
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}


def input_gradients(
    viewer: Viewer, pixels: Tensor, labels: Tensor, factors: Factors | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the cross-entropy with respect to views on [0, 1], before normalization.

    Args:
        pixels: (m, R, R, 3) uint8.
        labels: (m,) int64, -1 for what the view is predicted as.
        factors: (m, 4) of the view. Default: unchanged.

    Returns:
        (m, 3·R·R) float64 gradients; (m, D) features; (m,) the outputs that were derived.

    Raises:
        UserError: The outputs do not depend on the image by anything that can be derived.
    """
    view = viewer.view(pixels, factors).requires_grad_()
    with torch.enable_grad():
        features, logits = viewer.ask(view * 1.0)  # a copy: a net may begin in place
        labels = labels.to(logits.device)
        target = torch.where(labels < 0, logits.argmax(1), labels)
        # The cross-entropy is log(1 + exp s) with the log-odds s of all other outputs, and its
        # gradient sigmoid(s) · ∇s. Straight from the softmax it would be lost where p rounds to 1.
        own = F.one_hot(target, logits.shape[1]).bool()
        wide = logits.double()
        s = wide.masked_fill(own, -torch.inf).logsumexp(1) - wide[own]
        gradient = None
        if s.requires_grad:
            (gradient,) = torch.autograd.grad(s.sum(), view, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"gradients: model {viewer.model.name} lets no gradient through to its input; take "
            "its differentiable form"
        )
    std = torch.tensor(viewer.settings.std, dtype=torch.float64, device=gradient.device)
    by_pixel = gradient.double() / std[:, None, None]  # x = std · view + mean
    return s.detach().sigmoid()[:, None] * by_pixel.flatten(1), features.detach(), target


def _slopes(viewer: Viewer, index: Indices, kinds: list[str]) -> Arrays:
    """Kind -> (m,) the largest slope of an image's steps, ‖Δf‖₂ over the RMS of Δx."""
    slopes = {kind: np.zeros(len(index)) for kind in kinds}
    for images in viewer.images(index, "gradients: slopes along the colors"):
        for kind in kinds:
            slopes[kind][images.rows] = _largest_slope(viewer, images.pixels, kind)
    return slopes


def _largest_slope(viewer: Viewer, pixels: Tensor, kind: str) -> NDArray[np.float64]:
    strength = viewer.settings.strengths[KINDS.index(kind)]
    low, high = ends(kind, strength)
    std = torch.tensor(viewer.settings.std, device=pixels.device)[:, None, None]
    largest = np.zeros(len(pixels))
    before: tuple[Tensor, Tensor] | None = None
    for value in np.linspace(low, high, STEPS + 1):
        factors = one_kind(kind, float(value), len(pixels))
        view = viewer.view(pixels, factors) * std  # on [0, 1] but for the mean
        features = viewer.respond(pixels, factors).features.double()
        if before is not None:
            moved = (features - before[1]).norm(dim=1).numpy()
            step = (view - before[0]).double().square().mean((1, 2, 3)).sqrt().cpu().numpy()
            largest = np.maximum(
                largest, np.where(step > STILL, moved / np.maximum(step, STILL), 0)
            )
        before = view, features
    return largest


# --- figures -------------------------------------------------------------------------------------


def _examples(
    model: Classifier, loader: Pipeline, table: Rows, targets: NDArray[np.int64]
) -> tuple[Example, ...]:
    """The images whose gradient turns most."""
    columns, factors = table.columns, loader.plan().factors
    return tuple(
        Example.of(
            table.index[row],
            factors[table.index[row]],
            f"cosine of the two gradients {columns['cosine'][row]:.2f}, of "
            f"{model.class_name(int(targets[row]))}",
            f"norm of the gradient {columns['norm_clean'][row]:.3g} → "
            f"{columns['norm_perturbed'][row]:.3g}",
        )
        for row in np.argsort(columns["cosine"], kind="stable")[:N_EXAMPLES]
    )
