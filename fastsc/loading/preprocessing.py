"""How a network wants its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.pipelines.plan import Interpolation

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier wants its images: the shorter side to `resize`, the centre, normalized.

    Attributes:
        resolution: Side of the square that the model sees, in pixels.
        resize: Length of the shorter side before the square is cut out, at least `resolution`;
            need not be whole: only the share that the square has of it is used.
        mean, std: Of R, G, B on [0, 1].
        interpolation: Of the antialiased resize.
    """

    resolution: int = 224
    resize: float | Fraction = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    @property
    def val_crop(self) -> float:
        """The central square's share of the shorter side."""
        return float(self.resolution / Fraction(self.resize))  # rounded once


def rgb(values: Sequence[float]) -> RGB:
    """Three numbers as floats."""
    r, g, b = (float(value) for value in values)
    return r, g, b


def whole(length: float | Fraction) -> int | Fraction:
    """A length in pixels, exactly; an int where it is one."""
    exact = Fraction(length)
    return int(exact) if exact.denominator == 1 else exact
