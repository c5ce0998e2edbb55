"""What readers of a log rely on in its events: fields by their types, those that must be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastsc.pipelines.fields import Fields

Event = dict[str, Any]
MAX_STEP = 10**12  # as --max-steps
MAX_RANKS = 2**20
MAX_TIME = 2.5e11  # seconds since 1970, in the year 9892
_Check = Callable[[Fields, str], object]


def _step(fields: Fields, key: str) -> object:
    return fields.whole(key, 0, MAX_STEP)


def _shares(fields: Fields, key: str) -> object:
    """Dataset indices by rank; an empty list where they are not known."""
    shares = fields.values[key]
    if not isinstance(shares, list) or len(shares) > MAX_RANKS:
        fields.wrong(key, "a list of each rank's images")
    for share in shares:
        if not isinstance(share, list):
            fields.wrong(key, "a list of each rank's images")
        for image in share:
            Fields({key: image}, fields.place).whole(key)
    return shares


# A field has the same type in every event. What is not named here nobody reads, or by `Fields`.
_TYPES: dict[str, _Check] = {
    **dict.fromkeys(("step", "steps", "epoch"), _step),
    **dict.fromkeys(("images", "val_images", "pid"), Fields.whole),
    **dict.fromkeys(
        ("seconds", "pairs_per_s", "ds_relative", "between", "effective_rank", "ce"),
        Fields.number,
    ),
    **dict.fromkeys(
        ("reason", "path", "index_hash", "decoder", "device", "data", "pipeline", "host"),
        Fields.text,
    ),
    **dict.fromkeys(("changed", "process", "hardware", "versions"), Fields.inner),
    "time": lambda fields, key: fields.number(key, 0, MAX_TIME),
    "status": lambda fields, key: fields.whole(key, 0, 255),
    "log_every": lambda fields, key: fields.whole(key, 1, MAX_STEP),
    "world_size": lambda fields, key: fields.whole(key, 1, MAX_RANKS),
    "threads": lambda fields, key: fields.whole(key, 1, MAX_RANKS),
    "index": _shares,
}
_NEEDED = {
    "step": ("step",),
    "epoch": ("epoch", "seconds"),
    "resume": ("step",),
    "nonfinite": ("step", "index"),
    "bad_image": ("path",),
}


def checked(event: Event, place: str) -> Event:
    """The event, if its readers can take it.

    place: The log and the line.

    Raises:
        UserError: A field is missing or another than its readers rely on.
    """
    fields = Fields(event, place)
    kind = fields.text("event")
    for key in _NEEDED.get(kind, ()):
        if not fields.has(key):
            fields.wrong(key, f"there, as an event {kind} has it")
    _check(fields)
    if kind == "epoch" and fields.has("val"):  # elsewhere it is the option
        fields.inner("val")
    for inner in ("changed", "process"):
        if fields.has(inner):
            _check(fields.inner(inner))
    return event


def _check(fields: Fields) -> None:
    for key, check in _TYPES.items():
        if fields.has(key):
            check(fields, key)
