"""What shifts do to a picture: the library called directly, and closed forms of casts."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastsc.evaluation.questions.shifts.corruptions import (
    CORRUPTIONS,
    GROUPS,
    KINDS,
    SEVERITIES,
    WITHOUT_DEGREES,
    gained,
    sepia,
    shift,
)
from tests.fastsc.evaluation.questions.test_shifts import picture

pytestmark = pytest.mark.heavy


ic = pytest.importorskip("imagecorruptions", reason="pip install imagecorruptions-imaug")

CORRUPTED = tuple(kind for kinds in CORRUPTIONS.values() for kind in kinds)


def key_of(seed: int, index: int, kind: str, severity: int) -> Any:
    digest = hashlib.sha256(f"{seed}/{index}/{kind}/{severity}".encode()).digest()
    return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 32, 4)]


@pytest.mark.parametrize("kind", CORRUPTED)
@pytest.mark.parametrize("severity", [1, 5])
def test_corruptions_are_the_librarys_own(kind: str, severity: int) -> None:
    pixels = picture(1)
    kept = pixels.copy()
    key = key_of(7, 3, kind, severity)
    own = {"seed": key[0]} if kind in ("impulse_noise", "glass_blur") else {}
    np.random.seed(key)  # noqa: NPY002
    expected = ic.corrupt(pixels, severity, kind, **own)
    np.random.seed(5)  # noqa: NPY002
    found = shift(pixels, kind, severity, index=3, seed=7)
    after = np.random.random()  # noqa: NPY002
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, pixels)
    assert np.array_equal(pixels, kept)
    np.random.seed(5)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002  # as if nothing had been drawn


def test_casts_in_closed_form() -> None:
    pixels = picture(2)
    x = pixels.astype(np.float64)

    def near(kind: str, severity: int, expected: Any, most: float = 0.51) -> None:
        found = shift(pixels, kind, severity, index=0)
        assert found.dtype == np.uint8
        away = abs(found.astype(np.float64) - np.clip(expected, 0, 255))
        assert away.max() <= most, (kind, severity)

    for severity, gain in zip(SEVERITIES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        near("warm", severity, x * [1 + gain, 1, 1 - gain])
        near("cool", severity, x * [1 - gain, 1, 1 + gain])
    for severity, gamma in zip(SEVERITIES, (1.25, 1.5, 2, 2.5, 3), strict=True):
        near("gamma_darker", severity, 255 * (x / 255) ** gamma, 1)  # truncated there
        near("gamma_brighter", severity, 255 * (x / 255) ** (1 / gamma), 1)
    image = Image.fromarray(pixels)
    for severity, bits in zip(SEVERITIES, (5, 4, 3, 2, 1), strict=True):
        near("posterize", severity, np.array(ImageOps.posterize(image, bits)), 0)
    for severity, threshold in zip(SEVERITIES, (224, 192, 160, 128, 96), strict=True):
        near("solarize", severity, np.array(ImageOps.solarize(image, threshold)), 0)
    brown = np.clip(
        x @ np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]).T,
        0, 255,
    )  # fmt: skip
    for severity, share in zip(SEVERITIES, (0.2, 0.4, 0.6, 0.8, 1), strict=True):
        near("sepia", severity, x + share * (brown - x))
    near("inversion", 5, 255 - x, 0)
    near("grayscale", 5, np.array(image.convert("L"))[..., None].repeat(3, 2), 1)


def test_casts_of_no_strength_change_nothing() -> None:
    image = torch.from_numpy(picture(3)).permute(2, 0, 1)
    assert torch.equal(gained(image, 0), image)
    assert torch.equal(sepia(image, 0), image)


def test_channels_are_swapped_in_all_other_orders() -> None:
    pixels = picture(4)
    seen = set()
    for index in range(60):
        found = shift(pixels, "channel_swap", 5, index=index)
        order = tuple(
            next(c for c in range(3) if np.array_equal(found[..., at], pixels[..., c]))
            for at in range(3)
        )
        assert order == tuple(
            ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[
                key_of(0, index, "channel_swap", 5)[0] % 5
            ]
        )
        seen.add(order)
    assert len(seen) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_keyed_by_image_seed_and_severity(kind: str) -> None:
    pixels = picture(5)
    first = shift(pixels, kind, 3, index=1)
    other = shift(pixels, kind, 3, index=2)
    assert np.array_equal(shift(pixels, kind, 3, index=1), first)  # whatever came between
    drawn = {
        "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow",
        "frost", "fog", "elastic_transform",
    }  # fmt: skip
    if kind in drawn:
        assert not np.array_equal(other, first)
        assert not np.array_equal(shift(pixels, kind, 3, index=1, seed=1), first)
    elif kind != "channel_swap":
        assert np.array_equal(other, first)


def test_a_severity_is_more_than_the_one_before() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    for kind in CORRUPTIONS["noise"]:
        variances = [shift(grey, kind, s, index=0).astype(float).var() for s in SEVERITIES]
        assert (np.diff(variances) > 0).all(), kind
    gaussian = shift(grey, "gaussian_noise", 1, index=0).astype(float)
    assert gaussian.std() == pytest.approx(255 * 0.08, rel=0.03)
    many = [picture(i, 64) for i in range(4)]
    for kind in ("defocus_blur", "pixelate", "jpeg_compression", "contrast", *GROUPS["colour"]):
        if kind in WITHOUT_DEGREES:
            continue
        apart = [
            np.mean([abs(shift(p, kind, s, index=0).astype(float) - p) for p in many])
            for s in SEVERITIES
        ]
        assert (np.diff(apart) > 0).all(), kind


def test_kinds_and_groups_hold_together() -> None:
    assert set(CORRUPTED) == set(ic.get_corruption_names("common"))
    for group in CORRUPTIONS:
        assert set(CORRUPTIONS[group]) == set(ic.get_corruption_names(group))
    assert len(KINDS) == len(set(KINDS)) == 25
    assert not set(KINDS) & {*GROUPS, "corruptions", "all", "clean"}  # measures share their names
