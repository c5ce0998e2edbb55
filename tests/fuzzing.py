"""Changes of a file that is whole, and what a reader of it may do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fastsc.errors import UserError

ODD = st.sampled_from([
    None, True, "", "x", "NaN", -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 0.5, [], {},
    [[]], [None], ["a"], {"a": 1}, {"": {}}, "9" * 5000, "\ud800", "../../x", float("nan"),
    float("inf"), [1] * 50, "x" * 3000,
])  # fmt: skip
fuzzed = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(*at, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += places(value[key], (*at, key))
    return found


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its values replaced or left out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(value)):
            break
        *outer, key = draw(st.sampled_from(known))
        parent = value
        for step in outer:
            parent = parent[step]
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(ODD))  # it may be changed in its turn
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        elif kind == "insert":
            odd = (b"[" * 300, b"9" * 5000, b"\xff", b"\0", b"&a *a", b"{", b'"', b"\n- ")
            data[at:at] = draw(st.sampled_from(odd))
        else:
            del data[at:]
    return bytes(data)


def reads(read: Callable[[], object]) -> None:
    """Reads, or says in one line why not."""
    said = ""
    with suppress(UserError):
        try:
            read()
        except UserError as error:
            said = str(error)
            raise
    assert len(said) < 5000
    assert "\n" not in said


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")
