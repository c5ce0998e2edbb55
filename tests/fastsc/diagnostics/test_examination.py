"""Probes in processes of their own: one works, fails, crashes, hangs or waits for another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastsc.diagnostics.catalog import Probe, Result
from fastsc.diagnostics.examine import examine

pytestmark = pytest.mark.heavy


PLANTED = """
import atexit, os, signal, sys, time
from pathlib import Path

def well():
    print("a library's chatter")
    os.write(1, b"and more of it")
    return "all  is\\nwell"

def wrong(): raise RuntimeError("the first line\\nthe second")
def silent(): raise ValueError
def missing(): import no_package_of_anybody
def leaves(): sys.exit("bye")
def gone(): os.write(2, b"last words\\n"); os._exit(3)
def crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def crashes_later(): atexit.register(crashes); return "done"

def hangs(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)

def marks(path):
    Path(path).touch()
    return "marked"

def meets(mine, other):
    Path(mine).touch()
    end = time.monotonic() + 20
    while not Path(other).exists():
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.01)
    return "met"
"""


@pytest.fixture
def plant(shadow: Callable[[str, str], None]) -> Callable[..., Probe]:
    """Makes a probe of one of the functions above."""
    shadow("planted", PLANTED)
    functions: dict[str, Any] = {"__name__": "planted"}
    exec(PLANTED, functions)

    def make(function: str, *args: object, **options: Any) -> Probe:
        name = options.pop("name", function)
        return Probe("group", name, functions[function], tuple(map(str, args)), "cure", **options)

    return make


def test_a_probe_that_works_and_ones_that_fail(plant: Callable[..., Probe]) -> None:
    expected = {
        "well": "all is well",
        "wrong": "RuntimeError: the first line",
        "silent": "ValueError",
        "missing": "No module named 'no_package_of_anybody'",
        "leaves": "SystemExit: bye",
        "gone": "ended with status 3; last words",
    }
    told: list[Result] = []
    results = examine([plant(name) for name in expected], told.append)
    assert {r.probe.name: r.detail for r in results} == expected
    assert [r.probe.name for r in results] == list(expected)
    assert [r.works for r in results] == [True] + [False] * 5
    assert [r.remedy for r in results] == [None] + ["cure"] * 5
    assert {r.probe.name for r in told} == set(expected)


def test_a_crash_is_reported_and_ends_nothing_else(plant: Callable[..., Probe]) -> None:
    crash, later, well = examine([plant(f) for f in ("crashes", "crashes_later", "well")])
    assert (crash.works, crash.remedy) == (False, "cure")
    assert crash.detail == "crashed: Segmentation fault (signal 11)"
    assert not later.works
    assert later.detail == "worked, then crashed: Segmentation fault (signal 11)"
    assert well.works


def test_a_hang_is_reported_and_ended(plant: Callable[..., Probe], tmp_path: Path) -> None:
    began = time.monotonic()
    hang, well = examine([plant("hangs", tmp_path / "pid", timeout=2.0), plant("well")])
    assert time.monotonic() - began < 60
    assert (hang.works, hang.detail) == (False, "hangs: ended after 2 s")
    assert well.works
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(("gate", "tried"), [("well", True), ("wrong", False)])
def test_what_is_pointless_is_not_tried(
    plant: Callable[..., Probe], tmp_path: Path, gate: str, tried: bool
) -> None:
    mark = tmp_path / "mark"
    dependent, _ = examine([plant("marks", mark, after=gate), plant(gate)])
    assert dependent.works == mark.exists() == tried
    assert tried or (dependent.detail, dependent.remedy) == (
        f"not tried: {gate} does not work",
        None,
    )


def test_probes_run_at_the_same_time(
    plant: Callable[..., Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    a, b = tmp_path / "a", tmp_path / "b"
    pair = [plant("meets", a, b, name="one"), plant("meets", b, a, name="other")]
    assert [r.detail for r in examine(pair)] == ["met", "met"]
