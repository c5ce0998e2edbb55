"""What a field of `fastsc.config.schema` says of its option besides type, default and help."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastsc.errors import UserError
from fastsc.pipelines.fields import shown

# Beyond what any real run asks for; without an end, a number is too large for what is made of it.
MAX_EPOCHS = 1_000_000
MAX_BATCH = 2**24
MAX_IMAGES = 10**12
MAX_STEPS = 10**12
MAX_SEED = 2**63 - 1
WEEK = 86400 * 7  # seconds; as minutes, 420 days

MAX_SHOWN = 10**15  # written in full


@dataclass(frozen=True)
class Rules:
    """What holds of an option. Without any: of every value, and science.

    Attributes:
        low, high: The lowest and the highest number.
        above, below: Ends of the range that are not in it themselves.
        part: What it decides. science: what is computed, so a record's key has it and a resume must
            not change it; machine: where and how, the same for all processes; local: likewise, and
            each process may have its own.
        resume: Of science, when a resume has changed it. allowed: how long a run goes on, what
            loads and validates; elsewhere: refused by what it shapes, the weights' tensors or the
            pipeline's state.
        since: The version that brought it. At its default it is then left out of a record's key,
            or it would orphan every older record. Needed of new science.
        before: What runs without it did, where that is not its default: so they are replayed, and
            so they go on.
        needs: An option and the value that it must have, else this one has no meaning.
        when: The value that `needs` holds for; None: every one but the default.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    part: Literal["science", "machine", "local"] = "science"
    resume: Literal["refused", "allowed", "elsewhere"] = "refused"
    since: str = ""
    before: object = None
    needs: tuple[str, object] | None = None
    when: object = None

    @property
    def limits(self) -> str:
        """The range in words, as "above 0 to 1"; "" where there is none."""
        words = (("from", self.low), ("above", self.above), ("to", self.high))
        ends = (*words, ("to below", self.below))
        return " ".join(f"{word} {_number(end)}" for word, end in ends if end is not None)

    def check_range(self, option: str, value: float) -> None:
        """Raises UserError outside of the range; whole numbers may be larger than any float."""
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} must be a finite number, not {value}")
        for words, end, holds in (
            ("above", self.above, operator.gt),
            ("at least", self.low, operator.ge),
            ("below", self.below, operator.lt),
            ("at most", self.high, operator.le),
        ):
            if end is not None and not holds(value, end):
                given = shown(value) if isinstance(value, int) else f"{value:g}"
                must = f"{option} must be {words} {_number(end)}"
                raise UserError(f"{must}, not {given} ({self.limits})")


def option(default: Any, **rules: Any) -> Any:
    """A field of a section: its default, and the `Rules` that are not the usual ones."""
    return field(default=default, metadata={"rules": Rules(**rules)})


def spelled(name: str, value: object = None) -> str:
    """An option as one types it: --batch-size, --pipeline dali, --no-flip."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed}" if value is None else f"--{dashed} {value}"


def _number(end: float) -> str:
    return f"{end:,}" if end < MAX_SHOWN else f"{end:g}"
