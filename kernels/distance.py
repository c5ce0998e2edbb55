"""DS: how far apart two batches of representations are."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsc.kernels.devices import has_triton, interpreting

# In place of a zero denominator; a real one so small says that the features have collapsed.
TINY = 1e-12
_LN2 = 0.6931471805599453


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each row, (N, D) -> (N,), with gradient 0 instead of NaN at 0."""
    square = x.square().sum(1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def l2(f: Tensor, g: Tensor) -> Tensor:
    """mean_i ||f_i - g_i||, the plain reading of Wu et al. (arXiv 2011.09789)."""
    return _norm(f - g).mean()


def between_distance(f: Tensor) -> Tensor:
    """mean_i ||f_i - f_j||, j = (i + 1) mod N: how far apart different images of a batch are.

    `f` (N, D), N >= 2; low precision is computed in float32. A scalar, 0 for collapsed features.
    """
    if f.shape[0] < 2:
        raise ValueError("a between-image distance needs at least two images in the batch")
    f = wide(f)
    return _norm(f - f.roll(-1, 0)).mean()


def relative(
    f: Tensor, g: Tensor, detach_scale: bool = False, others: Tensor | None = None
) -> Tensor:
    """l2(f, g) in units of between_distance(others), by default of f.

    With `detach_scale` the unit gets no gradient.
    """
    return l2(f, g) / _scale(f if others is None else others, detach_scale)


def _scale(others: Tensor, detach_scale: bool) -> Tensor:
    scale = between_distance(others)
    if detach_scale:
        scale = scale.detach()
    return scale.clamp_min(TINY)


def _relative_in_one_pass(
    f: Tensor, g: Tensor, detach_scale: bool = False, others: Tensor | None = None
) -> Tensor:
    """`relative`, for the compiler: its backward is one loop over f, without arrays in between.

    The gradient of row i comes from the distances to both its neighbours. Through the roll, one of
    them arrives from another row, and stops the fusion. Here each distance is taken from both of
    its ends, the other end held constant, and the second time for the gradient alone.
    """
    if others is not None or detach_scale:
        return relative(f, g, detach_scale, others)
    fixed = f.detach()
    behind = _norm(f - fixed.roll(1, 0)).mean()
    scale = _norm(f - fixed.roll(-1, 0)).mean() + (behind - behind.detach())
    return l2(f, g) / scale.clamp_min(TINY)


def _unit(x: Tensor) -> Tensor:
    norm = _norm(x).unsqueeze(1)
    return x / torch.where(norm == 0, 1.0, norm)


def cosine(f: Tensor, g: Tensor) -> Tensor:
    """mean_i 1 - cos(f_i, g_i), as half the squared distance of the unit vectors.

    That form is exactly 0, with gradient 0, where f = g; 1 - cos is not, in floating point. A zero
    vector has no direction and stays 0, so it lies 1/2 from any unit vector.
    """
    return _chords(f, g).mean() / 2


def _chords(f: Tensor, g: Tensor) -> Tensor:
    """Squared distance of the unit vectors, (N, D) -> (N,)."""
    return (_unit(f) - _unit(g)).square().sum(1)


def js(f: Tensor, g: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence, in nats, of softmax(f_i) and softmax(g_i): 0 to ln 2.

    With d = log q - log p, m = (p + q) / 2 and t = tanh(d / 2), so that p, q = m (1 -+ t),
    JS = sum m/2 * (t d + log(1 - t^2)): each term is of second order in d, so nearby distributions
    lose no digits, and f = g gives exactly 0 with gradient 0. Where t^2 comes near 1 the same
    expression is written in exp(-|d|), which cannot overflow.
    """
    return _divergences(f, g).mean() / 2


def _divergences(f: Tensor, g: Tensor) -> Tensor:
    """Twice each row's divergence, (N, D) -> (N,)."""
    log_p, log_q = F.log_softmax(f, 1), F.log_softmax(g, 1)
    m = (log_p.exp() + log_q.exp()) / 2
    d = log_q - log_p
    near = d.abs() < 4
    d_near = torch.where(near, d, 0.0)  # keeps log(1 - t^2), and its gradient, finite
    t = (d_near / 2).tanh()
    second_order = t * d_near + torch.log1p(-t.square())
    size = torch.where(near, 4.0, d.abs())
    decay = torch.exp(-size)
    saturated = 2 * (F.logsigmoid(size) + _LN2 - size * decay / (1 + decay))
    return (m * torch.where(near, second_order, saturated)).sum(1)


def mse(f: Tensor, g: Tensor) -> Tensor:
    """mean (f - g)^2 over images and dimensions: logit pairing, Kannan et al. (arXiv 1803.06373).

    Theirs pairs an image with its adversarial example, or with another image; here, as in every
    kind, row i of both is one image. As l2, it falls with the scale of f and g.
    """
    return F.mse_loss(f, g)


def sq(f: Tensor, g: Tensor, others: Tensor | None = None) -> Tensor:
    """mean ||f_i - g_i||^2 over twice the variance of the pairs' midpoints m_i = (f_i + g_i) / 2.

    The variance is mean ||m_i - m||^2, m the mean midpoint, of `others`, by default of f and g.
    Blind to a common scale, as "relative", and to a common offset: features cannot come nearer to
    each other by growing a part that all images share, as a cosine lets them.
    """
    m = midpoints(f, g) if others is None else others
    return (f - g).square().sum(1).mean() / twice_variance(m)


def twice_variance(m: Tensor) -> Tensor:
    """(N, D) -> 2 mean ||m_i - m||^2, a scalar, at least TINY."""
    center = m.mean(0)
    if torch.compiler.is_compiling():
        center = center.detach()  # its gradient is 0, though not that of second order
    return (2 * (m - center).square().sum(1).mean()).clamp_min(TINY)


def midpoints(f: Tensor, g: Tensor) -> Tensor:
    """(f + g) / 2, in float32 at least."""
    return (wide(f) + wide(g)) / 2


def scale_rows(f: Tensor, g: Tensor, kind: str) -> Tensor | None:
    """(N, D): what the scale of a kind of BATCH_SCALED is taken over; None for other kinds."""
    if kind not in BATCH_SCALED:
        return None
    return midpoints(f, g) if kind == "sq" else f


KINDS = ("l2", "relative", "cosine", "js", "mse", "sq")
BATCH_SCALED = ("relative", "sq")  # in units of how far apart the images of a batch are
IMPLS = ("reference", "compiled", "triton")
_TABLE: dict[str, Callable[..., Tensor]] = {
    "l2": l2,
    "relative": relative,
    "cosine": cosine,
    "js": js,
    "mse": mse,
    "sq": sq,
}


@torch.no_grad()
def of_pairs(f: Tensor, g: Tensor, kind: str) -> Tensor:
    """What each pair adds to ds(f, g, kind), of which it is the mean: (N, D) -> (N,) float32.

    Of "relative" and "sq" what stands above the divisor, which is of all images:
    `between_distance`, `twice_variance`.
    """
    f, g = wide(f), wide(g)
    with torch.autocast(f.device.type, enabled=False):
        match kind:
            case "cosine":
                return _chords(f, g) / 2
            case "js":
                return _divergences(f, g) / 2
            case "mse":
                return (f - g).square().mean(1)
            case "sq":
                return (f - g).square().sum(1)
        return _norm(f - g)


def fusible(kind: str) -> Callable[..., Tensor]:
    """The formula of a kind as torch.compile fuses it best."""
    return _relative_in_one_pass if kind == "relative" else _TABLE[kind]


@functools.cache
def _compiled(kind: str) -> Callable[..., Tensor]:
    return torch.compile(fusible(kind))


def _triton(
    f: Tensor, g: Tensor, kind: str, detach_scale: bool = False, others: Tensor | None = None
) -> Tensor:
    from fastsc.kernels.distance_ops import ds as launch

    if f.dtype != g.dtype:
        f, g = f.float(), g.float()
    if kind == "relative" and others is not None:  # their distance by the formula: no pairs there
        return launch(f, g, "l2", False) / _scale(others.float(), detach_scale)
    if kind == "sq" and others is not None:
        return launch(f, g, "mse", False) * f.shape[1] / twice_variance(others.float())
    return launch(f, g, kind, detach_scale)


def triton_runs(device: torch.device) -> bool:
    """Whether the Triton kernels take tensors on `device`."""
    return has_triton(device) or interpreting(device)


# Asked while torch.compile traces a model. What torch.compiler.assume_constant_result does; that
# would import the compiler for everybody who imports a kernel, which takes a second.
triton_runs._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_triton(device: torch.device, double: bool) -> None:
    """Raises ValueError where the Triton kernels do not run."""
    if double:
        raise ValueError("impl 'triton' computes in float32; use 'reference' for float64 inputs")
    if not triton_runs(device):
        raise ValueError(
            "impl 'triton' needs triton and a CUDA device of compute capability 8.0, the input is "
            f"on {device}; use 'compiled' or 'auto'"
        )


def ds(
    f: Tensor,
    g: Tensor,
    kind: str = "l2",
    *,
    impl: str = "auto",
    detach_scale: bool = False,
    others: Tensor | None = None,
) -> Tensor:
    """Distance of two batches of representations; gradients flow into both.

    Computed in float32 (float64 for float64 inputs), also under autocast. ds(f, f) is exactly 0
    with gradient exactly 0, for every kind.

    Args:
        f: (N, D) floating point, of the clean views. Features for l2, relative, cosine and sq;
            logits for js; either for mse.
        g: Of the perturbed views, of the same shape and device.
        kind: "l2": mean ||f_i - g_i||. "relative": that, divided by mean ||f_i - f_j|| with
            j = (i + 1) mod N. "cosine": mean 1 - cos. "js": Jensen-Shannon divergence in nats of
            the softmaxes. "mse": mean (f - g)^2 over images and dimensions. "sq": mean
            ||f_i - g_i||^2 over twice the variance of the midpoints (f_i + g_i) / 2.
        impl: "reference", "compiled" (torch.compile), "triton" (CUDA; not float64), or "auto":
            triton on CUDA where it is installed, else compiled there, and reference on the CPU.
            Only the reference has second derivatives.
        detach_scale: for "relative", hold the divisor constant in the backward pass.
        others: for "relative", (K, D) representations of K >= 2 different images whose mean
            distance is the divisor, in place of f; for "sq", K >= 2 midpoints whose variance is.
            Those of all ranks, say: `scale_rows`, gathered.

    Returns:
        A scalar of float32, or float64.

    Raises:
        ValueError: an argument does not fit; the message says what to do.
    """
    if kind not in KINDS:
        raise ValueError(f"ds kind {kind!r} does not exist; choose from {', '.join(KINDS)}")
    double = torch.float64 in (f.dtype, g.dtype)
    any_double = double or (others is not None and others.dtype == torch.float64)
    if impl == "auto":
        impl = "reference"
        if f.device.type == "cuda":
            impl = "triton" if not any_double and triton_runs(f.device) else "compiled"
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r} does not exist; choose from auto, {', '.join(IMPLS)}")
    if f.ndim != 2 or f.shape != g.shape or f.numel() == 0:
        raise ValueError(
            f"ds takes two (N, D) representations, not {tuple(f.shape)} and {tuple(g.shape)}; "
            "flatten or pool them, and skip an empty batch"
        )
    if not (f.is_floating_point() and g.is_floating_point()):
        raise ValueError(f"ds takes floating-point inputs, not {f.dtype} and {g.dtype}")
    if f.device != g.device:
        raise ValueError(f"f is on {f.device}, g on {g.device}; move one to the other's device")
    if others is not None and (others.ndim != 2 or others.shape[1] != f.shape[1]):
        raise ValueError(f"others must be (K, {f.shape[1]}), not {tuple(others.shape)}")
    if kind in BATCH_SCALED and (f if others is None else others).shape[0] < 2:
        raise ValueError(
            f"ds kind {kind!r} compares different images: the batch needs at least two "
            "(use 'l2' or 'cosine' for one)"
        )
    if impl == "triton":
        check_triton(f.device, any_double)
        with torch.autocast(f.device.type, enabled=False):
            return _triton(f, g, kind, detach_scale, others)
    distance = _TABLE[kind] if impl == "reference" else _compiled(kind)
    if kind in BATCH_SCALED:
        others = None if others is None else wide(others, double)
        distance = functools.partial(distance, others=others)
    if kind == "relative":
        distance = functools.partial(distance, detach_scale=detach_scale)
    with torch.autocast(f.device.type, enabled=False):
        return distance(wide(f, double), wide(g, double))


def wide(x: Tensor, double: bool = False) -> Tensor:
    """In float32 at least, or in float64."""
    return x.to(torch.float64 if double or x.dtype == torch.float64 else torch.float32)
