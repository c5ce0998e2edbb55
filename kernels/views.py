"""The paired view: one uint8 batch in, a clean and a perturbed normalized batch out."""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastsc.kernels.colour import color_jitter

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMPLS = ("reference", "compiled", "numba")

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
) -> Pair:
    """Normalize a batch twice: as it is, and after a colour perturbation of each image.

    clean = (x / 255 - mean) / std and perturbed = (P(x / 255) - mean) / std, where P is brightness,
    contrast, saturation, hue of `torchvision.transforms.v2.functional`, in this order, each clamped
    to [0, 1]. In float32 P is within 1/255 of torchvision on float images. Both views are computed
    in float32 and rounded once, to nearest even. An image with factors (1, 1, 1, 0) comes out twice
    the same, bit for bit; the clean view does not depend on the factors. No gradient flows here:
    `color_jitter` in `colour` is the differentiable form.

    Args:
        x_u8: (N, H, W, 3) uint8, RGB, on any device. Copied first if it is not contiguous.
        factors: (N, 4) float32, same device: brightness, contrast and saturation >= 0, hue in
            [-0.5, 0.5] circles. Values are checked on the CPU; a check on a GPU would stall it.
        mean, std: three floats each, on the scale [0, 1].
        dtype: of the views: float32, bfloat16 or float16.
        impl: "reference" (torch, any device), "compiled" (the reference through torch.compile),
            "numba" (CPU, one thread, releases the GIL), or "auto": numba on the CPU where it is
            installed, compiled on CUDA, else the reference.
        out: (clean, perturbed) to write into and return: `dtype`, (N, 3, H, W), channels-last, on
            the device of `x_u8`, not overlapping.

    Returns:
        (clean, perturbed), each (N, 3, H, W) in channels-last memory.

    Raises:
        ValueError: an argument does not fit; the message says what to do.
    """
    _check_images(x_u8, dtype)
    _check_factors(x_u8, factors)
    implementation = _choose(impl, x_u8.device)
    n, h, w, _ = x_u8.shape
    if out is None:
        out = (_empty_view(x_u8, dtype), _empty_view(x_u8, dtype))
    else:
        clean, perturbed = out
        _check_out("clean", clean, x_u8, dtype)
        _check_out("perturbed", perturbed, x_u8, dtype)
        if clean.numel() and _overlap(clean, perturbed):
            raise ValueError("out: clean and perturbed share memory; give two separate buffers")
    if n * h * w:
        scale, shift = _affine(tuple(map(float, mean)), tuple(map(float, std)), x_u8.device)
        with torch.no_grad():
            implementation(x_u8.contiguous(), factors, scale, shift, *out)
    return out


def normalize(
    x_u8: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """The clean view alone, for loaders of single views: bit-equal to `pair_view(...)[0]`.

    Arguments as for `pair_view`; `out` is one (N, 3, H, W) channels-last tensor.
    """
    _check_images(x_u8, dtype)
    implementation = _choose(impl, x_u8.device)
    if out is None:
        out = _empty_view(x_u8, dtype)
    else:
        _check_out("view", out, x_u8, dtype)
    if out.numel():
        scale, shift = _affine(tuple(map(float, mean)), tuple(map(float, std)), x_u8.device)
        with torch.no_grad():
            if implementation is _pair_numba:
                _normalize_numba(x_u8.contiguous(), scale, shift, out)
            elif implementation is _pair_compiled:
                # As in the compiled pair, where a GPU's compiler fuses multiply and add.
                _normalize_compiled()(x_u8.contiguous(), scale, shift, out)
            else:
                _normalize_reference(x_u8, scale, shift, out)
    return out


# --- implementations -----------------------------------------------------------------------------


def _normalize_reference(x_u8: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    levels = x_u8.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W), channels-last
    out.copy_(levels * scale.view(3, 1, 1) + shift.view(3, 1, 1))


def _pair_reference(
    x_u8: Tensor, factors: Tensor, scale: Tensor, shift: Tensor, clean: Tensor, perturbed: Tensor
) -> None:
    levels = x_u8.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W), channels-last
    scale, shift = scale.view(3, 1, 1), shift.view(3, 1, 1)
    plain = levels * scale + shift
    changed = color_jitter(levels / 255, factors) * (255 * scale) + shift
    # x / 255 * 255 does not round back to x everywhere, so untouched images are taken as they are.
    untouched = (factors[:, :3] == 1).all(1) & (factors[:, 3] == 0)
    clean.copy_(plain)
    perturbed.copy_(torch.where(untouched.view(-1, 1, 1, 1), plain, changed))


@functools.cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_pair_reference)


@functools.cache
def _normalize_compiled() -> Callable[..., None]:
    return torch.compile(_normalize_reference)


def _pair_compiled(*args: Tensor) -> None:
    _compiled()(*args)


def _pair_numba(
    x_u8: Tensor, factors: Tensor, scale: Tensor, shift: Tensor, clean: Tensor, perturbed: Tensor
) -> None:
    from fastsc.kernels.views_numba import pair_batch

    n, h, w, _ = x_u8.shape
    pair_batch(
        x_u8.numpy().reshape(n, h, 3 * w),
        factors.detach().contiguous().numpy(),
        scale.numpy(),
        shift.numpy(),
        _rows(clean),
        _rows(perturbed),
    )


def _normalize_numba(x_u8: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    from fastsc.kernels.views_numba import normalize_batch

    n, h, w, _ = x_u8.shape
    rows = x_u8.numpy().reshape(n, h, 3 * w)
    normalize_batch(rows, scale.numpy(), shift.numpy(), _rows(out))


def _rows(view: Tensor):  # type: ignore[no-untyped-def]  # numpy arrays, (N, H, 3W)
    """The memory of a channels-last view, as the numba kernel takes it."""
    from fastsc.kernels.views_numba import BF16_BITS, FP16_BITS

    n, _, h, w = view.shape
    memory = view.detach().permute(0, 2, 3, 1)
    if view.dtype != torch.float32:
        bits = BF16_BITS if view.dtype == torch.bfloat16 else FP16_BITS
        return memory.view(torch.int16).numpy().view(bits).reshape(n, h, 3 * w)
    return memory.numpy().reshape(n, h, 3 * w)


_TABLE: dict[str, Callable[..., None]] = {
    "reference": _pair_reference,
    "compiled": _pair_compiled,
    "numba": _pair_numba,
}


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _choose(impl: str, device: torch.device) -> Callable[..., None]:
    if impl == "auto":
        if device.type == "cuda":
            impl = "compiled"
        else:
            impl = "numba" if device.type == "cpu" and _has_numba() else "reference"
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r} does not exist; choose from auto, {', '.join(IMPLS)}")
    if impl == "numba":
        if device.type != "cpu":
            raise ValueError(
                f"impl 'numba' runs on the CPU, x_u8 is on {device}; use 'compiled' or 'auto'"
            )
        if not _has_numba():
            raise ValueError("impl 'numba' needs numba: pip install numba, or use 'reference'")
    return _TABLE[impl]


# --- checks and buffers --------------------------------------------------------------------------


def _check_images(x_u8: Tensor, dtype: torch.dtype) -> None:
    if x_u8.dtype != torch.uint8 or x_u8.ndim != 4 or x_u8.shape[3] != 3:
        raise ValueError(
            f"x_u8 must be (N, H, W, 3) uint8, not {tuple(x_u8.shape)} {x_u8.dtype}; "
            "for (N, 3, H, W) images pass x.permute(0, 2, 3, 1)"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


def _check_factors(x_u8: Tensor, factors: Tensor) -> None:
    n = x_u8.shape[0]
    if factors.shape != (n, 4) or factors.dtype != torch.float32:
        raise ValueError(
            f"factors must be ({n}, 4) float32, one row an image (brightness, contrast, "
            f"saturation, hue), not {tuple(factors.shape)} {factors.dtype}"
        )
    if factors.device != x_u8.device:
        raise ValueError(
            f"factors are on {factors.device}, x_u8 on {x_u8.device}; pass factors.to(x_u8.device)"
        )
    if factors.device.type == "cpu" and n:
        # numpy, not torch: torch may wake its thread pool for these few numbers. Comparisons are
        # written so that a NaN, which compares false, fails too.
        values = factors.detach().numpy()
        gains, hue = values[:, :3], values[:, 3]
        gains_fit = gains.min() >= 0 and gains.max() < float("inf")
        if not (gains_fit and hue.min() >= -0.5 and hue.max() <= 0.5):
            raise ValueError(
                "factors out of range: brightness, contrast and saturation must be finite and "
                "at least 0, hue in [-0.5, 0.5]"
            )


def _check_out(name: str, view: Tensor, x_u8: Tensor, dtype: torch.dtype) -> None:
    n, h, w, _ = x_u8.shape
    if view.shape != (n, 3, h, w) or view.dtype != dtype or view.device != x_u8.device:
        raise ValueError(
            f"out: {name} is {tuple(view.shape)} {view.dtype} on {view.device}; "
            f"it must be {(n, 3, h, w)} {dtype} on {x_u8.device}"
        )
    if not view.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError(
            f"out: {name} is not in channels-last memory; make it with "
            "torch.empty(..., memory_format=torch.channels_last)"
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    start_a, start_b = a.data_ptr(), b.data_ptr()
    return start_a < start_b + b.nbytes and start_b < start_a + a.nbytes


def _empty_view(x_u8: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x_u8.shape, dtype=dtype, device=x_u8.device).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * scale + shift; cached, for a copy to a GPU would stall it."""
    finite = all(math.isfinite(v) for v in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
        raise ValueError(f"mean and std must be three finite floats, std > 0; got {mean}, {std}")
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)
