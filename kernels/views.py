"""The paired view: one uint8 batch in, a clean and a perturbed normalized batch out."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsc.kernels.arguments import (
    DTYPES,
    check_factors,
    check_images,
    check_order,
    check_out,
    check_second,
    empty_views,
    overlap,
    scale_and_shift,
)
from fastsc.kernels.color import color_jitter
from fastsc.kernels.devices import has_numba, has_triton, interpreting
from fastsc.kernels.threads import deal

IMPLS = ("reference", "compiled", "numba", "triton")

Pair = tuple[Tensor, Tensor]


def pair_view(
    x_u8: Tensor,
    factors: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    out: Pair | None = None,
    threads: int = 1,
    order: Tensor | None = None,
    second: Tensor | None = None,
) -> Pair:
    """Normalize a batch twice: as it is, and after a color perturbation of each image.

    clean = (x / 255 - mean) / std and perturbed = (P(x / 255) - mean) / std, where P is brightness,
    contrast, saturation, hue of `torchvision.transforms.v2.functional`, in this order, each clamped
    to [0, 1]. In float32 P is within 1/255 of torchvision on float images. Both views are computed
    in float32 and rounded once, to nearest even. An image with factors (1, 1, 1, 0) comes out twice
    the same, bit for bit; the clean view does not depend on the factors. No gradient flows here:
    `color_jitter` in `color` is the differentiable form.

    Args:
        x_u8: (N, H, W, 3) uint8, RGB, on any device. Copied first if it is not contiguous.
        factors: (N, 4) float32, same device: brightness, contrast and saturation >= 0, hue in
            [-0.5, 0.5] circles. Values are checked on the CPU; a check on a GPU would stall it.
        mean: of R, G and B, on the scale [0, 1].
        std: standard deviation of R, G and B, on that scale.
        dtype: of the views: float32, bfloat16 or float16.
        impl: "reference" (torch, any device), "compiled" (the reference through torch.compile),
            "numba" (CPU, releases the GIL), "triton" (CUDA, two launches), or "auto": numba on the
            CPU and triton on CUDA where they are installed, else compiled on CUDA and the
            reference elsewhere.
        out: (clean, perturbed) to write into and return: `dtype`, (N, 3, H, W), channels-last, on
            the device of `x_u8`, not overlapping.
        threads: Of the numba implementation, which deals the images over them; a loader that calls
            from threads of its own wants 1. The result does not depend on it.
        order: (N,) int64, same device, rows of `color.PERMUTATIONS`: P's operations in an order of
            each image's own, by "reference" or "compiled" only ("auto" is the former on the CPU).
        second: The bytes of which the perturbed view is made, of the shape and on the device of
            `x_u8`; None: `x_u8` itself, which is then read once for both views.

    Returns:
        (clean, perturbed), each (N, 3, H, W) in channels-last memory; without `out` the first and
        the last N rows of one tensor.

    Raises:
        ValueError: an argument does not fit; the message says what to do.
    """
    check_images(x_u8, dtype)
    check_factors(x_u8, factors)
    check_order(x_u8, order)
    implementation = _choose(impl, x_u8.device, threads, order)
    if out is None:
        both, n = empty_views(x_u8, dtype, 2), x_u8.shape[0]
        out = (both[:n], both[n:])
    else:
        clean, perturbed = out
        check_out("clean", clean, x_u8, dtype)
        check_out("perturbed", perturbed, x_u8, dtype)
        if clean.numel() and overlap(clean, perturbed):
            raise ValueError("out: clean and perturbed share memory; give two that do not overlap")
    if second is None:
        _run(implementation, x_u8, factors, mean, std, *out)
    else:
        check_second(x_u8, second)
        _run(implementation, x_u8, None, mean, std, out[0], None)
        _run(implementation, second, factors, mean, std, None, out[1])
    return out


def normalize(
    x_u8: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    out: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """The clean view alone, for loaders of single views: bit-equal to `pair_view(...)[0]`.

    Arguments as for `pair_view`; `out` is one (N, 3, H, W) channels-last tensor.
    """
    check_images(x_u8, dtype)
    implementation = _choose(impl, x_u8.device, threads, None)
    out = _one_view(x_u8, dtype, out)
    _run(implementation, x_u8, None, mean, std, out, None)
    return out


def perturb(
    x_u8: Tensor,
    factors: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    out: Tensor | None = None,
    threads: int = 1,
    order: Tensor | None = None,
) -> Tensor:
    """The perturbed view alone, to look at many of the same images: equal to `pair_view(...)[1]`.

    Arguments as for `pair_view`; `out` is one (N, 3, H, W) channels-last tensor.
    """
    check_images(x_u8, dtype)
    check_factors(x_u8, factors)
    check_order(x_u8, order)
    implementation = _choose(impl, x_u8.device, threads, order)
    out = _one_view(x_u8, dtype, out)
    _run(implementation, x_u8, factors, mean, std, None, out)
    return out


def _one_view(x_u8: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    if out is None:
        return empty_views(x_u8, dtype, 1)
    check_out("view", out, x_u8, dtype)
    return out


def _run(
    implementation: Callable[..., None],
    x_u8: Tensor,
    factors: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    clean: Tensor | None,
    perturbed: Tensor | None,
) -> None:
    scale, shift = scale_and_shift(tuple(map(float, mean)), tuple(map(float, std)), x_u8.device)
    if x_u8.numel():
        with torch.no_grad():
            implementation(x_u8.contiguous(), factors, scale, shift, clean, perturbed)


# --- implementations -----------------------------------------------------------------------------
# Each takes (x_u8, factors, scale, shift, clean, perturbed): scale and shift (3,) take a level to a
# normalized value; a view that is None is not wanted, and without a perturbed one factors are None.


def _reference(
    order: Tensor | None,
    x_u8: Tensor,
    factors: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    clean: Tensor | None,
    perturbed: Tensor | None,
) -> None:
    levels = x_u8.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W), channels-last
    scale, shift = scale.view(3, 1, 1), shift.view(3, 1, 1)
    plain = levels * scale + shift
    if clean is not None:
        clean.copy_(plain)
    if perturbed is not None and factors is not None:
        changed = color_jitter(levels / 255, factors, order) * (255 * scale) + shift
        # x / 255 * 255 does not round back to x everywhere: untouched images are taken as they are.
        untouched = (factors[:, :3] == 1).all(1) & (factors[:, 3] == 0)
        perturbed.copy_(torch.where(untouched.view(-1, 1, 1, 1), plain, changed))


@functools.cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_reference)


def _numba(
    threads: int,
    x_u8: Tensor,
    factors: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    clean: Tensor | None,
    perturbed: Tensor | None,
) -> None:
    from fastsc.kernels.views_numba import normalize_batch, pair_batch, rounds_to_half

    views = (clean, perturbed)
    if any(v is not None and v.dtype == torch.float16 for v in views) and not rounds_to_half():
        wide = [None if v is None else torch.empty_like(v, dtype=torch.float32) for v in views]
        _numba(threads, x_u8, factors, scale, shift, *wide)
        for view, single in zip(views, wide, strict=True):
            if view is not None and single is not None:
                view.copy_(single)
        return
    n, lines = len(x_u8), (scale.numpy(), shift.numpy())
    x = x_u8.numpy().reshape(n, -1)
    plain: Any = None if clean is None else _flat(clean)
    if perturbed is None or factors is None:

        def work(rows: slice) -> None:
            normalize_batch(x[rows], *lines, plain[rows])

    else:
        values, changed = factors.detach().contiguous().numpy(), _flat(perturbed)
        both = plain is not None
        first = plain if both else changed  # not touched, but an array of the same type

        def work(rows: slice) -> None:
            pair_batch(x[rows], values[rows], *lines, first[rows], changed[rows], both)

    deal(work, n, threads)


def _flat(view: Tensor) -> Any:
    """The memory of a channels-last view, as a numpy array (N, 3HW) for the numba kernel."""
    from fastsc.kernels.views_numba import BF16_BITS, FP16_BITS

    memory = view.detach().permute(0, 2, 3, 1).reshape(len(view), -1)
    if view.dtype != torch.float32:
        bits = BF16_BITS if view.dtype == torch.bfloat16 else FP16_BITS
        return memory.view(torch.int16).numpy().view(bits)
    return memory.numpy()


def _choose(
    impl: str, device: torch.device, threads: int, order: Tensor | None
) -> Callable[..., None]:
    if impl == "auto" and order is not None:
        impl = "compiled" if device.type == "cuda" else "reference"
    if impl == "auto":
        if device.type == "cuda":
            impl = "triton" if has_triton(device) else "compiled"
        else:
            impl = "numba" if device.type == "cpu" and has_numba() else "reference"
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r} does not exist; choose from auto, {', '.join(IMPLS)}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if order is not None and impl in ("numba", "triton"):
        raise ValueError(f"impl {impl!r} has one order of operations; use 'compiled' or 'auto'")
    if impl == "numba":
        if device.type != "cpu":
            raise ValueError(
                f"impl 'numba' runs on the CPU, x_u8 is on {device}; use 'triton' or 'auto'"
            )
        if not has_numba():
            raise ValueError("impl 'numba' needs numba: pip install numba, or use 'reference'")
        return functools.partial(_numba, threads)
    if impl == "triton":
        if not (has_triton(device) or interpreting(device)):
            raise ValueError(
                f"impl 'triton' needs triton and a CUDA device of compute capability 8.0, x_u8 is "
                f"on {device}; use 'compiled' or 'auto'"
            )
        from fastsc.kernels.views_triton import paint

        return paint
    return functools.partial(_compiled() if impl == "compiled" else _reference, order)


__all__ = ["DTYPES", "IMPLS", "Pair", "normalize", "pair_view", "perturb"]
