"""The timer itself: what it counts, in which order, and the files it writes."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from bench.common import (
    Case,
    Result,
    Skipped,
    add_arguments,
    describe,
    is_rate,
    measure,
    parse,
    print_table,
    report,
    summarize,
    to_json,
)


class Clock:
    """A clock that only the cases move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def case(self, name: str, durations: list[float], items: int = 1, unit: str = "ms") -> Case:
        left = list(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0)

        return Case(name, run, items, unit)


def test_warmup_is_not_counted() -> None:
    clock = Clock()
    case = clock.case("a", [99, 99, 0.001, 0.002, 0.003])
    (row,) = measure([case], rounds=3, warmup=2, clock=clock)
    assert row.name == "a"
    assert row.n == 3
    assert (row.q1, row.median, row.q3) == pytest.approx((1.5, 2.0, 2.5))


def test_rounds_interleave_and_turn() -> None:
    clock = Clock()
    cases = [clock.case(name, [1.0] * 4) for name in "abc"]
    measure(cases, rounds=3, warmup=1, clock=clock)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab"


def test_units() -> None:
    """Milliseconds an item, or items a second; a median rate is no inverse of a median time."""
    clock = Clock()
    slow = clock.case("slow", [0.5, 1.0], items=10, unit="ms/image")
    rate = clock.case("rate", [0.5, 1.0], items=10, unit="pairs/s")
    first, second = measure([slow, rate], rounds=2, warmup=0, clock=clock)
    assert first.median == pytest.approx(75)
    assert second.median == pytest.approx(15)
    assert is_rate("pairs/s")
    assert not is_rate("ms/image")


def test_a_run_may_count_its_own_items() -> None:
    clock = Clock()

    def run() -> int:
        clock.now += 2.0
        return 50

    (row,) = measure([Case("a", run, unit="images/s")], rounds=1, clock=clock)
    assert row.median == pytest.approx(25)


def test_the_device_is_waited_for_inside_the_timed_region(monkeypatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("bench.common.synchronize", lambda device: events.append("sync"))

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    measure([Case("a", lambda: events.append("run"))], rounds=1, warmup=0, clock=clock)
    assert events == ["sync", "clock", "run", "sync", "clock"]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warmup": -1}])
def test_numbers_that_do_not_fit(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure([Case("a", lambda: None)], **options)


def test_two_cases_of_one_name() -> None:
    with pytest.raises(ValueError, match="one name"):
        measure([Case("a", lambda: None), Case("a", lambda: None)], rounds=1)


def test_one_value_is_its_own_quartile() -> None:
    assert summarize("a", [3.0], "ms") == Result("a", 3.0, 3.0, 3.0, "ms", 1)


ROWS = (Result("x/ours", 1.0, 0.9, 1.2, "ms", 5), Skipped("x/peer", "pip install peer"))


def test_json_has_the_settled_form() -> None:
    document = json.loads(to_json(ROWS, describe()))
    assert set(document) == {"metadata", "results"}
    assert list(document["results"][0]) == ["name", "median", "q1", "q3", "unit", "n"]
    assert document["results"][1] == {"name": "x/peer", "skipped": "pip install peer"}
    metadata = document["metadata"]
    assert {"hardware", "versions", "date", "command", "commit", "threads"} <= set(metadata)
    assert metadata["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert metadata["hardware"]["cores"] >= 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json([Result("a", value, 1.0, 1.0, "ms", 3)], {})


def test_the_table_shows_ratios_and_reasons(capsys) -> None:
    rows = [*ROWS, Result("x/base", 4.0, 4.0, 4.0, "ms", 5)]
    print_table(rows, "title", {"x": "x/base"})
    printed = capsys.readouterr().out
    assert "4.00×" in printed
    assert "pip install peer" in printed


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def test_report_writes_the_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.json"
    options = parse(parser(), ["--json", str(path)])
    report(ROWS, "title", options, extra={"size": 3})
    assert json.loads(path.read_text())["metadata"]["size"] == 3
    assert "title" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--json", "/nowhere/at/all.json"], "no folder"),
        (["--json", "/"], "/ is a folder"),
        (["--device", "warp"], "no device"),
    ],
)
def test_mistakes_end_with_status_2(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(parser(), arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_kernel_benchmark_runs(tmp_path: Path) -> None:
    from bench.kernels import main

    threads = torch.get_num_threads()
    path = tmp_path / "kernels.json"
    try:
        main(["--rounds", "1", "--size", "24", "--batch", "4", "--json", str(path)])
    finally:
        torch.set_num_threads(threads)
    names = [row["name"] for row in json.loads(path.read_text())["results"]]
    assert {
        "pair_view/torchvision",
        "pair_view/write-floor",
        "front_end/rgb-luma-minmax-numba",
        "ds/js-reference",
    } <= set(names)
    assert len(set(names)) == len(names)
