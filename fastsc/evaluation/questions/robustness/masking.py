"""Signs that a classifier's gradients are masked, so that attacks that follow them tell little.

After Athalye et al., "Obfuscated gradients give a false sense of security" (arXiv 1802.00420), and
Carlini et al., "On evaluating adversarial robustness" (arXiv 1902.06705). A sign is no proof, and
without one gradients may be masked all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.questions.robustness.attacks import Attack

HUGE = 32.0  # 8-bit levels of L-inf: a quarter of the range, both ways
LEAST, SHARE = 2, 0.05  # a sign is at least two images, and 5 %: one may be chance
AS_STRONG = 0.9  # of what PGD fools, by noise


def signs(
    attacks: Sequence[Attack],
    least: Mapping[str, NDArray[np.float64]],
    has_gradient: NDArray[np.bool_],
) -> tuple[str, ...]:
    """What was seen, a sentence each.

    Args:
        attacks: Those that ran.
        least: Key of an attack -> (n,) level at which it fooled the model first; 0 where it is
            wrong unchanged, inf where no level did.
        has_gradient: (n,) whether the loss's gradient at the image is anything but zeros.
    """
    levels = {attack.key: attack.levels for attack in attacks}
    warnings = [_no_gradient(has_gradient)]
    if "pgd/linf" in least:
        pgd, walked = least["pgd/linf"], levels["pgd/linf"]
        for key, why in (
            ("square/linf", "which uses no gradients, fools more images than PGD does"),
            ("fgsm/linf", "a single step, fools more images than PGD does"),
        ):
            if key in least:
                shared = [level for level in levels[key] if level in walked]
                warnings.append(_stronger(key, why, least[key], pgd, shared))
        if "noise/linf" in least:
            shared = [x for x in levels["noise/linf"] if x in walked and x < HUGE]
            warnings.append(_noise(least["noise/linf"], pgd, shared))
        warnings.append(_survives(pgd, walked[-1]))
    return tuple(warning for warning in warnings if warning)


def _fooled(least: NDArray[np.float64], level: float) -> int:
    """Images that are right unchanged and fooled up to a level."""
    return int(((least > 0) & (least <= level)).sum())


def _is_sign(count: int, n: int) -> bool:
    return count >= max(LEAST, SHARE * n)


def _no_gradient(has_gradient: NDArray[np.bool_]) -> str:
    none, n = int((~has_gradient).sum()), len(has_gradient)
    if not _is_sign(none, n):
        return ""
    return f"the gradient of the loss is exactly zero at {none} of {n} images"


def _stronger(
    key: str,
    why: str,
    least: NDArray[np.float64],
    pgd: NDArray[np.float64],
    levels: Sequence[float],
) -> str:
    """Where an attack that should be the weaker one fools the most images more than PGD does."""
    name = {"square/linf": "Square", "fgsm/linf": "FGSM"}[key]
    excess = {level: _fooled(least, level) - _fooled(pgd, level) for level in levels}
    if not excess:
        return ""
    level = max(excess, key=lambda at: excess[at])
    if not _is_sign(excess[level], len(pgd)):
        return ""
    return (
        f"{name}, {why} at {level:g}/255: {_fooled(least, level)} and {_fooled(pgd, level)} of "
        f"{int((pgd > 0).sum())}"
    )


def _noise(noise: NDArray[np.float64], pgd: NDArray[np.float64], levels: Sequence[float]) -> str:
    for level in levels:
        a, b = _fooled(noise, level), _fooled(pgd, level)
        if _is_sign(b, len(pgd)) and a >= AS_STRONG * b:
            return (
                f"random noise fools as many images as PGD does at {level:g}/255: {a} and {b} of "
                f"{int((pgd > 0).sum())}"
            )
    return ""


def _survives(pgd: NDArray[np.float64], level: float) -> str:
    """At a ball in which every picture is grey noise, an attack that works is always done."""
    left = int((pgd > level).sum())
    if level < HUGE or not _is_sign(left, len(pgd)):
        return ""
    return (
        f"PGD leaves {left} of {int((pgd > 0).sum())} images right at {level:g}/255, where hardly "
        "anything of a picture has to be left"
    )
