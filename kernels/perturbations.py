"""Further changes of an image that leave its meaning alone, on bytes, each image by its own amount.

Every operation is bytes to bytes, (N, H, W, 3) uint8 on any device, made to give the same on each:
what is transcendental is tabulated in float64 on the CPU, and the rest is whole numbers, or float32
products and sums that no compiler may fuse. numba computes on a CPU where it is installed, torch
elsewhere. Amount 0 is the identity, bit for bit, for each operation.

`OPERATIONS` says what each amount is; `pipelines.perturbing` draws them.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.kernels.devices import has_numba, on_device

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 as torchvision has it
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB, ITU-R BT.709
DAYLIGHT = 6504.0  # kelvin, the white of sRGB
SIDE = 224  # pixels of the side that the blur's sigma is of
QUANTILES = 2**16  # of the normal distribution, that noise is drawn from
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Operation:
    """An operation of `OPERATIONS`.

    Attributes:
        about: What it does by an amount, in the amount's unit.
        low, high: The ends of the amounts that it takes; 0, the identity, lies between them.
        table: Amounts (n,) -> (n, 3, 256) uint8, what each level of R, G, B becomes; None where a
            pixel's neighbours, its other channels or chance have a say.
        work: (images, amounts, keys, threads) -> other images, of one without a table. keys (n, 2)
            float in [0, 1) are what chance depends on.
        keyed: Whether it takes keys.
        whole: Amounts are whole numbers.
    """

    about: str
    low: float
    high: float
    table: Callable[[Floats], Bytes] | None = None
    work: Callable[[Tensor, Floats, Floats, int], Tensor] | None = None
    keyed: bool = False
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """An operation by name, with what it does to each of n images.

    Attributes:
        name: In `OPERATIONS`.
        amounts: (n,) within the operation's ends.
        keys: (n, 2) in [0, 1), where the operation takes them.
    """

    name: str
    amounts: Floats
    keys: Floats | None = None


@torch.no_grad()
def perturb_bytes(images: Tensor, changes: Sequence[Change], *, threads: int = 1) -> Tensor:
    """The operations one after the other; those that are tables, together in one pass.

    Args:
        images: (N, H, W, 3) uint8, RGB, on any device. Not written to.
        changes: In their order.
        threads: Of the JPEG codec, which has no implementation for GPUs: images are copied to the
            CPU and back there.

    Returns:
        Of the same shape, dtype and device; `images` itself where no amount differs from 0.

    Raises:
        ValueError: An argument does not fit.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        shape = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images must be (N, H, W, 3) uint8, not {shape}")
    pending: Bytes | None = None
    for change in changes:
        operation, amounts = _checked(change, len(images))
        if not images.numel() or not amounts.any():
            continue
        if operation.table is not None:
            table = operation.table(amounts)
            if pending is not None:
                table = np.take_along_axis(table, pending.astype(np.int64), axis=2)
            pending = table
            continue
        if pending is not None:
            images, pending = _look_up(images, pending), None
        assert operation.work is not None
        keys = np.zeros((len(images), 2)) if change.keys is None else change.keys
        images = operation.work(images.contiguous(), amounts, keys, threads)
    return images if pending is None else _look_up(images, pending)


def _checked(change: Change, n: int) -> tuple[Operation, Floats]:
    if (operation := OPERATIONS.get(change.name)) is None:
        raise ValueError(f"no operation {change.name!r}; there are {', '.join(OPERATIONS)}")
    amounts = np.asarray(change.amounts, np.float64)
    low, high = operation.low, operation.high
    if amounts.shape != (n,) or not ((amounts >= low) & (amounts <= high)).all():
        raise ValueError(f"{change.name}: amounts must be ({n},) from {low:g} to {high:g}")
    if operation.keyed and (change.keys is None or change.keys.shape != (n, 2)):
        raise ValueError(f"{change.name}: keys must be ({n}, 2)")
    return operation, amounts


# --- tables --------------------------------------------------------------------------------------

_LEVELS = np.arange(256) / 255


def _rounded(values: Floats) -> Bytes:
    """Values on [0, 1] as bytes, halves upwards."""
    return np.floor(np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _three(tables: Bytes) -> Bytes:
    """(n, 256) -> (n, 3, 256)."""
    return np.repeat(tables[:, None], 3, axis=1)


def _gamma(amounts: Floats) -> Bytes:
    """x ** (2 ** amount); `torchvision.transforms.v2.functional.adjust_gamma` in float64."""
    return _three(_rounded(_LEVELS ** np.exp2(amounts)[:, None]))


def to_linear(values: Floats) -> Floats:
    """sRGB on [0, 1] -> linear light (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(values: Floats) -> Floats:
    """Linear light on [0, 1] -> sRGB."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def _exposure(amounts: Floats) -> Bytes:
    """Linear light times 2 ** amount, cut off at white."""
    light = to_linear(_LEVELS) * np.exp2(amounts)[:, None]
    return _three(_rounded(from_linear(np.minimum(light, 1))))


def planckian(kelvin: Floats) -> Floats:
    """(n,) temperatures, 1667 to 25000 K -> (n, 2) chromaticities x, y of a black body, CIE 1931.

    The cubic splines of Kim et al., US patent 7024034 (2006), also in Kang et al., J. Korean Phys.
    Soc. 41 (2002) 865.
    """
    k = 1e3 / kelvin
    warm, cool = (
        (a * k**3 + b * k**2 + c * k + d)
        for a, b, c, d in (
            (-0.2661239, -0.2343589, 0.8776956, 0.179910),
            (-3.0258469, 2.1070379, 0.2226347, 0.240390),
        )
    )
    x = np.where(kelvin <= 4000, warm, cool)
    low, middle, high = (
        ((a * x + b) * x + c) * x + d
        for a, b, c, d in (
            (-1.1063814, -1.34811020, 2.18555832, -0.20219683),
            (-0.9549476, -1.37418593, 2.09137015, -0.16748867),
            (3.0817580, -5.87338670, 3.75112997, -0.37001483),
        )
    )
    y = np.where(kelvin <= 2222, low, np.where(kelvin <= 4000, middle, high))
    return np.stack([x, y], axis=1)


# Of XYZ to linear sRGB (IEC 61966-2-1).
_TO_RGB = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
)


def white_gains(mired: Floats) -> Floats:
    """(n,) shifts -> (n, 3): what a white balance off by so much multiplies linear R, G, B by.

    The color of the black body at 10⁶ / (10⁶ / 6504 + shift) kelvin over that at 6504 K, with the
    luminance of grey kept: above 0 is warmer.
    """
    kelvin = 1e6 / (1e6 / DAYLIGHT + np.concatenate([np.zeros(1), mired]))
    x, y = planckian(kelvin).T
    rgb = np.stack([x / y, np.ones_like(x), (1 - x - y) / y], axis=1) @ _TO_RGB.T
    gains: Floats = rgb[1:] / rgb[:1]
    return gains / (gains @ np.array(LUMINANCE))[:, None]


def _temperature(amounts: Floats) -> Bytes:
    """Linear light times `white_gains`, cut off at the brightest."""
    light = to_linear(_LEVELS) * white_gains(amounts)[:, :, None]
    return _rounded(from_linear(np.minimum(light, 1)))


def _posterize(amounts: Floats) -> Bytes:
    """Without the last `amount` bits; torchvision's `posterize` with 8 - amount."""
    bits = (0xFF << amounts.astype(np.int64)) & 0xFF
    return _three((np.arange(256)[None] & bits[:, None]).astype(np.uint8))


def _look_up(images: Tensor, tables: Bytes) -> Tensor:
    """(n, H, W, 3), and what each level of each channel becomes, (n, 3, 256)."""
    n, images = len(images), images.contiguous()
    if (fast := _numba(images)) is not None:
        out = torch.empty_like(images)
        fast.look_up(images.numpy().reshape(n, -1), tables, out.numpy().reshape(n, -1))
        return out
    places = torch.arange(3 * n, dtype=torch.int32, device=images.device).view(n, 1, 1, 3) * 256
    levels = on_device(tables.ravel(), images.device)
    return levels.index_select(0, (places + images).flatten()).view_as(images)


# --- neighbours, channels, chance -----------------------------------------------------------------


def _numba(images: Tensor) -> Any:
    """The module of the implementations for a CPU, or None."""
    if images.device.type != "cpu" or not has_numba():
        return None
    from fastsc.kernels import perturbations_numba

    return perturbations_numba


def _bytes(values: Tensor) -> Tensor:
    """float32 levels as bytes, halves upwards."""
    return (values + 0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _column(values: NDArray[Any], images: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1) float32 on the images' device."""
    return on_device(values.astype(np.float32), images.device).view(-1, 1, 1, 1)


def _grayscale(images: Tensor, amounts: Floats, _keys: Floats, _threads: int) -> Tensor:
    """0.2989 R + 0.587 G + 0.114 B in all channels, of the images whose amount is 1."""
    if (fast := _numba(images)) is not None:
        n, out = len(images), torch.empty_like(images)
        fast.grayscale(images.numpy().reshape(n, -1), amounts > 0, out.numpy().reshape(n, -1))
        return out
    red, green, blue = images.float().unbind(3)
    weights = np.array(GREY, np.float32).tolist()
    grey = _bytes(red * weights[0] + green * weights[1] + blue * weights[2])[..., None]
    return torch.where(_column(amounts, images) > 0, grey, images)


def blur_weights(sigmas: Floats) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n,) pixels -> (n, 2R + 1) weights of each image, in the middle, and its radius ⌈3σ⌉ (n,)."""
    radii = np.ceil(3 * sigmas).astype(np.int64)
    most = int(radii.max(initial=0))
    x = np.arange(-most, most + 1)
    weights = np.exp(-0.5 * (x / np.maximum(sigmas, 1e-12)[:, None]) ** 2)
    weights *= np.abs(x) <= radii[:, None]
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32), radii


def reflected(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Places on a line of `size` pixels that is mirrored at its outer pixels, however far out."""
    if size == 1:
        return np.zeros_like(places)
    places = np.abs(places) % (2 * size - 2)
    return np.minimum(places, 2 * size - 2 - places)


def _blur(images: Tensor, amounts: Floats, _keys: Floats, _threads: int) -> Tensor:
    """A Gaussian of ⌈3σ⌉ pixels each way, rows then columns, mirrored at the borders.

    `torchvision.transforms.v2.functional.gaussian_blur` with that kernel, on float images.
    """
    _, height, width, _ = images.shape
    weights, radii = blur_weights(amounts * (min(height, width) / SIDE))
    if (fast := _numba(images)) is not None:
        out = torch.empty_like(images)
        fast.blur(images.numpy(), weights, radii, out.numpy())
        return out
    middle, x = weights.shape[1] // 2, images.float()
    for axis, size in ((2, width), (1, height)):
        total = torch.zeros_like(x)
        for column in range(weights.shape[1]):
            places = reflected(np.arange(size) + column - middle, size)
            moved = x.index_select(axis, on_device(places, images.device))
            total += moved.mul_(_column(weights[:, column], images))
        x = total
    return _bytes(x)


def _sharpness(images: Tensor, amounts: Floats, _keys: Floats, _threads: int) -> Tensor:
    """x + amount · (x - smooth), smooth the 3 × 3 mean with the centre counted five times.

    `torchvision.transforms.v2.functional.adjust_sharpness` with 1 + amount on float images: the
    outermost pixels stay, and so do images of less than three pixels a side.
    """
    _, height, width, _ = images.shape
    if height < 3 or width < 3:
        return images
    if (fast := _numba(images)) is not None:
        out = torch.empty_like(images)
        fast.sharpness(images.numpy(), amounts.astype(np.float32), out.numpy())
        return out
    x = images.float()
    inner = x[:, 1:-1, 1:-1]
    total = 4 * inner
    for dy in range(3):
        for dx in range(3):
            total += x[:, dy : dy + height - 2, dx : dx + width - 2]
    smooth = total.mul_(float(np.float32(1 / 13)))
    out = images.clone()
    out[:, 1:-1, 1:-1] = _bytes((inner - smooth).mul_(_column(amounts, images)).add_(inner))
    return out


@functools.cache
def normal_quantiles() -> NDArray[np.float32]:
    """(2**16,) quantiles of the standard normal distribution, at the middles of equal shares."""
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    quantiles: NDArray[np.float32] = torch.special.ndtri(middles).float().numpy()
    return quantiles


def _noise(images: Tensor, amounts: Floats, keys: Floats, _threads: int) -> Tensor:
    """Gaussian noise of every value by itself, of a standard deviation in 255ths.

    Value i of an image has the quantile that the upper 16 bits of a hash of its keys and i name:
    two rounds of a 32-bit mixer (Wellons' lowbias32, 2018).
    """
    n = len(images)
    words = (keys * 2**24).astype(np.int64)
    if (fast := _numba(images)) is not None:
        out = torch.empty_like(images)
        fast.noise(
            images.numpy().reshape(n, -1), amounts.astype(np.float32), words.astype(np.uint32),
            normal_quantiles(), out.numpy().reshape(n, -1),
        )  # fmt: skip
        return out
    first, second = on_device(words, images.device).unbind(1)
    place = torch.arange(images[0].numel(), device=images.device)
    hashed = _mixed(place[None] ^ first[:, None])
    hashed = _mixed((hashed + second[:, None]) & _MASK) >> 16
    drawn = on_device(normal_quantiles(), images.device)[hashed].view(images.shape)
    return _bytes(drawn.mul_(_column(amounts, images)).add_(images))


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit hash of whole numbers below 2**32, in int64, which wraps."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _jpeg(images: Tensor, amounts: Floats, _keys: Floats, threads: int) -> Tensor:
    """Encoded at quality 100 - amount (4:2:0, libjpeg's exact DCT) and decoded again; at 0 not.

    By Pillow, on the CPU, whatever else is installed: encoders of other builds of libjpeg-turbo
    give other bytes.
    """
    arrays = np.array(images.cpu().numpy())  # what is written to
    rows = np.flatnonzero(amounts).tolist()

    def recode(row: int) -> None:
        arrays[row] = _recoded(arrays[row], 100 - int(amounts[row]))

    if threads > 1 and len(rows) > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix="jpeg") as pool:
            list(pool.map(recode, rows))
    else:
        for row in rows:
            recode(row)
    return on_device(arrays, images.device)


def _recoded(image: Bytes, quality: int) -> Bytes:
    """(H, W, 3) through a JPEG of that quality."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file, formats=("JPEG",)))


OPERATIONS = {
    "gamma": Operation("the exponent of every level is 2 ** amount", -3, 3, _gamma),
    "temperature": Operation(
        "white balance off by so many mired along the Planckian locus; above 0 is warmer",
        -110, 110, _temperature,
    ),
    "exposure": Operation("so many stops more light, in linear light", -5, 5, _exposure),
    "grayscale": Operation("at 1 without color", 0, 1, work=_grayscale, whole=True),
    "blur": Operation(
        "a Gaussian's sigma in pixels of an image of 224; it grows with the shorter side",
        0, 20, work=_blur,
    ),
    "sharpness": Operation("so much of the difference to a smooth image more", -1, 10,
        work=_sharpness),
    "noise": Operation("a standard deviation in 255ths", 0, 128, work=_noise, keyed=True),
    "jpeg": Operation("through a JPEG of quality 100 - amount", 0, 99, work=_jpeg, whole=True),
    "posterize": Operation("without its last amount bits", 0, 7, _posterize, whole=True),
}  # fmt: skip
