"""fastsc: semantically continuous image classifiers, trained at the speed of the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsc.jitter import ColorJitter
    from fastsc.loss import ContinuityLoss
    from fastsc.models.noise import SharedDraws
    from fastsc.training.repair import repair

__all__ = ["ColorJitter", "ContinuityLoss", "SharedDraws", "__version__", "repair"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): `from fastsc.kernels import ds` runs this file and must pull in nothing above.
    if name == "ColorJitter":
        from fastsc.jitter import ColorJitter

        return ColorJitter
    if name == "ContinuityLoss":
        from fastsc.loss import ContinuityLoss

        return ContinuityLoss
    if name == "SharedDraws":
        from fastsc.models.noise import SharedDraws

        return SharedDraws
    if name == "repair":
        from fastsc.training.repair import repair

        return repair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
