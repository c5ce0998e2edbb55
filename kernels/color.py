"""Color arithmetic on float images, batched, with one factor an image.

The oracle is `torchvision.transforms.v2.functional` on float images, applied image by image in the
order brightness, contrast, saturation, hue, each result clamped to [0, 1]. Grey weights and the HSV
formulas are torchvision's. torchvision takes one factor a call; here a factor is a tensor (N,), so
a batch needs no loop. Everything is out of place and differentiable, in images and factors.

Shapes: `image` is (N, 3, H, W) float, RGB on [0, 1]; a factor is (N,); `factors` is (N, 4) with the
columns brightness, contrast, saturation, hue.
"""

import itertools

import torch
from torch import Tensor

# ITU-R BT.601 as torchvision rounds it; the weights add up to 0.9999, so grey is not quite a
# fixed point of saturation, there as here.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)

# brightness, contrast, saturation, hue at which nothing changes
IDENTITY = (1.0, 1.0, 1.0, 0.0)


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def grey(image: Tensor) -> Tensor:
    """Luma of an RGB image: (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = image.unbind(1)
    wr, wg, wb = GREY_WEIGHTS
    return (wr * red + wg * green + wb * blue).unsqueeze(1)


def _blend(image: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    ratio = _per_image(ratio)
    return (ratio * image + (1 - ratio) * other).clamp(0, 1)


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Scale by `factor` (N,), at least 0."""
    return (image * _per_image(factor)).clamp(0, 1)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of each image; `factor` (N,), at least 0."""
    return _blend(image, grey(image).mean((2, 3), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with each pixel's grey; `factor` (N,), at least 0."""
    return _blend(image, grey(image), factor)


def adjust_hue(image: Tensor, factor: Tensor) -> Tensor:
    """Turn the HSV hue by `factor` (N,) full circles, in [-0.5, 0.5]; 0 leaves the image untouched.

    With V = max, chroma C = max - min and the hue on a circle of six, the way back from HSV has the
    closed form  V - C * clamp(min(k, 4 - k), 0, 1),  k = (n + hue) mod 6,  n = 5, 3, 1 for R, G, B
    (equal to torchvision's table of v, p, q, t, without its gather).
    """
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    # A grey pixel has no hue; a denominator of 1 keeps the division, and its gradient, finite.
    width = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / width,
        torch.where(value == green, 2 + (blue - red) / width, 4 + (red - green) / width),
    )
    hue = hue + 6 * factor.view(-1, 1, 1)
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(hue + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    turned = torch.stack(channels, 1)
    return torch.where(_per_image(factor) == 0, image, turned)


_OPS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
PERMUTATIONS = tuple(itertools.permutations(range(4)))  # of the columns of factors: 24
# Each of the 24 is a subsequence of these twelve steps, and no shorter sequence has that. With
# identity factors at the eight steps that an image leaves out, a batch needs no loop over images
# and no look at their orders, which would stall a GPU.
_STEPS = (0, 1, 2, 3, 0, 1, 2, 0, 3, 1, 0, 2)


def _places(permutation: tuple[int, ...]) -> list[bool]:
    """Which of the steps an image with this order takes: the earliest that make it up."""
    wanted = iter((*permutation, None))
    following = next(wanted)
    taken = []
    for step in _STEPS:
        taken.append(step == following)
        if taken[-1]:
            following = next(wanted)
    return taken


_TAKEN = torch.tensor([_places(permutation) for permutation in PERMUTATIONS])  # (24, 12) bool


_kept: dict[torch.device, Tensor] = {}


def _taken(device: torch.device) -> Tensor:
    """_TAKEN on a device, kept there: a copy to a GPU would stall it."""
    if torch.compiler.is_compiling():
        return _TAKEN.to(device)  # once, as a constant of the graph
    if device not in _kept:
        _kept[device] = _TAKEN.to(device)
    return _kept[device]


def color_jitter(image: Tensor, factors: Tensor, order: Tensor | None = None) -> Tensor:
    """Brightness, contrast, saturation and hue in that order, each clamped to [0, 1].

    `image` (N, 3, H, W) float32 or float64 on [0, 1]; `factors` (N, 4). Returns the same shape and
    dtype. Identity factors (1, 1, 1, 0) return the image's own values, bit for bit.

    `order` (N,) int64, rows of PERMUTATIONS, gives each image an order of its own, at three times
    the work.
    """
    columns = factors.to(image.dtype).unbind(1)
    if order is None:
        for adjust, factor in zip(_OPS, columns, strict=True):
            image = adjust(image, factor)
        return image
    taken = _taken(image.device)[order]  # (N, 12)
    for step, here in zip(_STEPS, taken.unbind(1), strict=True):
        image = _OPS[step](image, torch.where(here, columns[step], IDENTITY[step]))
    return image
