"""Every operation against an oracle: torchvision on float images, Pillow, or one written here."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from fastsc.kernels import pair_view, perturbations
from fastsc.kernels.perturbations import OPERATIONS, Change, perturb_bytes
from tests.pipelines.conftest import photograph

KEYS = np.random.default_rng(1).random((64, 2))


def batch(image: np.ndarray[Any, Any], n: int) -> Tensor:
    return torch.from_numpy(np.stack([image] * n))


def pictures() -> dict[str, Tensor]:
    """(3, H, W, 3) each."""
    noise = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    return {
        "photograph": batch(np.asarray(photograph(3, (61, 47))), 3),
        "noise": batch(noise, 3),
        "grey": batch(np.full((9, 11, 3), 128, np.uint8), 3),
        "black": batch(np.zeros((5, 5, 3), np.uint8), 3),
        "white": batch(np.full((5, 5, 3), 255, np.uint8), 3),
        "dot": batch(noise[:1, :1], 3),
        "line": batch(noise[:2], 3),
    }


@pytest.fixture(params=["numba", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What GPUs run, here on the CPU, and what CPUs run."""
    if request.param == "torch":
        monkeypatch.setattr(perturbations, "has_numba", lambda: False)
    else:
        pytest.importorskip("numba")
    name: str = request.param
    return name


def amounts(name: str) -> list[float]:
    low, high = OPERATIONS[name].low, OPERATIONS[name].high
    if name == "grayscale":
        return [0, 1, 1]
    if OPERATIONS[name].whole:
        return [1, high // 2, high]
    return [0.7 * low, 0.05 * high, 0.3 * high]


def to_linear(level: float) -> float:
    v = level / 255
    return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4


def from_linear(light: float) -> float:
    light = min(max(light, 0.0), 1.0)
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


def gains(mired: float) -> list[float]:
    """Of R, G, B: scalar arithmetic, by the formula's own branches."""

    def rgb(kelvin: float) -> list[float]:
        t = kelvin
        if t <= 4000:
            x = -0.2661239e9 / t**3 - 0.2343589e6 / t**2 + 0.8776956e3 / t + 0.179910
        else:
            x = -3.0258469e9 / t**3 + 2.1070379e6 / t**2 + 0.2226347e3 / t + 0.240390
        if t <= 2222:
            y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
        elif t <= 4000:
            y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
        else:
            y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
        big_x, big_z = x / y, (1 - x - y) / y
        return [
            3.2406 * big_x - 1.5372 - 0.4986 * big_z,
            -0.9689 * big_x + 1.8758 + 0.0415 * big_z,
            0.0557 * big_x - 0.2040 + 1.0570 * big_z,
        ]

    ratio = [a / b for a, b in zip(rgb(1e6 / (1e6 / 6504 + mired)), rgb(6504), strict=True)]
    luminance = sum(w * g for w, g in zip((0.2126, 0.7152, 0.0722), ratio, strict=True))
    return [g / luminance for g in ratio]


def by_level(function: Callable[[float, int], float]) -> Callable[[Tensor], Tensor]:
    """An oracle of (level, channel), of a (3, H, W) float64 image."""
    table = [[function(level, channel) for level in range(256)] for channel in range(3)]
    tables = torch.tensor(table, dtype=torch.float64)

    def of(image: Tensor) -> Tensor:
        return torch.stack([tables[c][image[c].long()] for c in range(3)])

    return of


def oracle(name: str, amount: float, image: Tensor) -> Tensor:
    """(3, H, W) float64 levels -> levels."""
    x, (height, width) = image / 255, image.shape[1:]
    if name == "gamma":
        return 255 * tvf.adjust_gamma(x, 2**amount)
    if name == "exposure":
        return by_level(lambda v, _: from_linear(to_linear(v) * 2**amount))(image)
    if name == "temperature":
        own = gains(amount)
        return by_level(lambda v, c: from_linear(to_linear(v) * own[c]))(image)
    if name == "grayscale":
        return 255 * tvf.rgb_to_grayscale(x, 3) if amount else image
    if name == "sharpness":
        return 255 * tvf.adjust_sharpness(x, 1 + amount)
    if name == "posterize":
        return tvf.posterize(image.byte(), 8 - int(amount)).double()
    assert name == "blur"
    sigma = amount * min(height, width) / 224
    radius = math.ceil(3 * sigma)
    if not radius or radius >= min(height, width):  # torchvision cannot mirror so far
        return gaussian(image, sigma, radius)
    return 255 * tvf.gaussian_blur(x, [2 * radius + 1] * 2, [sigma] * 2)


def gaussian(image: Tensor, sigma: float, radius: int) -> Tensor:
    """One value after the other."""
    if sigma == 0:
        return image
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]

    def mirrored(place: int, size: int) -> int:
        while size > 1 and not 0 <= place < size:
            place = -place if place < 0 else 2 * size - 2 - place
        return place if size > 1 else 0

    for axis in (2, 1):
        size = image.shape[axis]
        parts = [
            image.index_select(axis, torch.tensor([mirrored(i + k, size) for i in range(size)]))
            for k in range(-radius, radius + 1)
        ]
        image = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)  # type: ignore[assignment]
    return image


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"noise", "jpeg"}))
def test_within_half_a_level_of_the_oracle(name: str, implementation: str) -> None:
    for title, x in pictures().items():
        before = x.clone()
        changed = perturb_bytes(x, [Change(name, np.array(amounts(name), float))])
        assert torch.equal(x, before), "written to"
        for amount, image, after in zip(amounts(name), x, changed, strict=True):
            wanted = oracle(name, amount, image.permute(2, 0, 1).double()).clamp(0, 255)
            error = (after.permute(2, 0, 1).double() - wanted).abs().max()
            assert error <= 0.5 + 1e-3, f"{title} {amount}: {error}"


def test_the_locus_is_that_of_black_bodies() -> None:
    """Planck's law and the color matching functions of Wyman et al. (JCGT 2, 2013)."""

    def lobe(x: Any, height: float, centre: float, left: float, right: float) -> Any:
        return height * np.exp(-0.5 * ((x - centre) * np.where(x < centre, left, right)) ** 2)

    nm = np.arange(360, 831, 1.0)
    matching = np.stack(
        [
            lobe(nm, 0.362, 442.0, 0.0624, 0.0374) + lobe(nm, 1.056, 599.8, 0.0264, 0.0323)
            - lobe(nm, 0.065, 501.1, 0.0490, 0.0382),
            lobe(nm, 0.821, 568.8, 0.0213, 0.0247) + lobe(nm, 0.286, 530.9, 0.0613, 0.0322),
            lobe(nm, 1.217, 437.0, 0.0845, 0.0278) + lobe(nm, 0.681, 459.0, 0.0385, 0.0725),
        ]
    )  # fmt: skip
    for kelvin in (2000.0, 3800.0, 5000.0, 6504.0, 10_000.0, 24_000.0):
        radiance = nm**-5.0 / np.expm1(1.438777e7 / (nm * kelvin))
        xyz = matching @ radiance
        own = perturbations.planckian(np.array([kelvin]))[0]
        assert np.abs(own - xyz[:2] / xyz.sum()).max() < 4e-3, kelvin
    red, _, blue = perturbations.white_gains(np.array([60.0]))[0]
    assert red > 1 > blue, "above 0 is warmer"


@pytest.mark.parametrize("name", OPERATIONS)
def test_amount_zero_is_the_identity_and_rows_do_not_depend_on_each_other(
    name: str, implementation: str
) -> None:
    some = np.array([0, *amounts(name)], float)
    for x in pictures().values():
        assert perturb_bytes(x, [Change(name, np.zeros(3), KEYS[:3])]) is x
        four = torch.cat([x[:1], x])
        changed = perturb_bytes(four, [Change(name, some, KEYS[:4])])
        assert torch.equal(changed[0], four[0])
        for row in range(4):
            alone = Change(name, some[row : row + 1], KEYS[row : row + 1])
            assert torch.equal(perturb_bytes(four[row : row + 1], [alone])[0], changed[row])
        none = perturb_bytes(x[:0], [Change(name, np.empty(0), KEYS[:0])])
        assert none.shape == (0, *x.shape[1:])


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_implementations_give_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    change = [Change(name, np.array(amounts(name), float), KEYS[:3])]
    compiled = {title: perturb_bytes(x, change) for title, x in pictures().items()}
    monkeypatch.setattr(perturbations, "has_numba", lambda: False)
    for title, x in pictures().items():
        assert torch.equal(perturb_bytes(x, change), compiled[title]), title


def test_noise_is_normal_and_white(implementation: str) -> None:
    x = torch.full((4, 96, 96, 3), 128, dtype=torch.uint8)
    deviation = 12.0
    noise = perturb_bytes(x, [Change("noise", np.full(4, deviation), KEYS[:4])]).double() - 128
    n = noise.numel()
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(n)
    wanted = math.sqrt(deviation**2 + 1 / 12)  # rounding's variance
    assert abs(noise.std() / wanted - 1) < 5 / math.sqrt(2 * n)
    assert abs((noise**4).mean() / wanted**4 - 3) < 0.1
    z = noise / wanted
    for a, b in (
        (z[0], z[1]), (z[:, 1:], z[:, :-1]), (z[:, :, 1:], z[:, :, :-1]), (z[..., 0], z[..., 1]),
    ):  # fmt: skip
        assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())
    again = perturb_bytes(x, [Change("noise", np.full(4, deviation), KEYS[:4])])
    assert torch.equal(again.double() - 128, noise)


@pytest.mark.parametrize("quality", [1, 23, 75, 99])
def test_jpeg_is_what_torchvision_decodes_of_pillows_file(quality: int) -> None:
    for x in pictures().values():
        changed = perturb_bytes(x, [Change("jpeg", np.full(3, 100.0 - quality))], threads=2)
        for image, after in zip(x.numpy(), changed, strict=True):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
            encoded = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
            assert torch.equal(after.permute(2, 0, 1), decode_jpeg(encoded))


def test_tables_in_a_row_are_one_after_the_other() -> None:
    x = pictures()["noise"]
    changes = [
        Change(name, np.array(amounts(name), float), KEYS[:3])
        for name in ("gamma", "temperature", "blur", "exposure", "posterize", "noise")
    ]
    step = x
    for change in changes:
        step = perturb_bytes(step, [change])
    assert torch.equal(perturb_bytes(x, changes), step)


def test_the_second_view_has_its_own_bytes() -> None:
    x, rng = pictures()["noise"], np.random.default_rng(5)
    second = torch.from_numpy(rng.integers(0, 256, x.shape, np.uint8))
    factors = torch.tensor([[1.2, 0.8, 1.1, 0.05]]).repeat(3, 1)
    lines = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    clean, perturbed = pair_view(x, factors, *lines, second=second)
    assert torch.equal(clean, pair_view(x, factors, *lines)[0])
    assert torch.equal(perturbed, pair_view(second, factors, *lines)[1])
    with pytest.raises(ValueError, match="second must be"):
        pair_view(x, factors, *lines, second=second[:2])


def test_mistakes() -> None:
    x = pictures()["dot"]
    for change, message in (
        (Change("blurr", np.zeros(3)), "no operation 'blurr'"),
        (Change("blur", np.zeros(2)), r"blur: amounts must be \(3,\) from 0 to 20"),
        (Change("gamma", np.array([0, math.nan, 0])), "gamma: amounts"),
        (Change("noise", np.zeros(3)), r"noise: keys must be \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            perturb_bytes(x, [change])
    with pytest.raises(ValueError, match="uint8"):
        perturb_bytes(x.float(), [])
