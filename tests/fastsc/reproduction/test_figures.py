"""Figures of the reproduction's page: what a reader gets of the numbers that are put in."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from fastsc.plotting.sheet import size
from fastsc.reproduction.figures import (
    Goal,
    Line,
    Mark,
    Panel,
    Point,
    Row,
    Series,
    bars,
    by_perturbation,
    effects,
    over_alpha,
    plane,
    trajectories,
)
from fastsc.reproduction.figures.axes import ticks
from fastsc.reproduction.figures.labels import place_labels
from fastsc.reproduction.seeds import SeedEstimate

pytestmark = pytest.mark.heavy

pytest.importorskip("matplotlib")

NAN = float("nan")
SVG = "{http://www.w3.org/2000/svg}"
ODD = 'a <b> & $c$ "d" n = 5'  # what XML and matplotlib would take for their own
Box = tuple[float, float, float, float]


def found(value: float, half: float = NAN) -> SeedEstimate:
    return SeedEstimate(value, value - half, value + half, 1 if math.isnan(half) else 5)


def _plane() -> str:
    points = [
        Point("CE (n = 5)", found(0.332, 0.002), found(54.8, 0.6), "no constraint"),
        Point("both views (n = 5)", found(0.21, 0.003), found(55.5, 0.5), "no constraint"),
        Point(
            "cosine (n = 5)", found(0.178, 0.003), found(55.3, 0.4), "constraint, with the goals"
        ),
        Point("cosine, α = 30", found(0.135, 0.003), found(54.0, 0.6)),
        Point(ODD, found(0.19), found(54.5), "no constraint"),
    ]
    goal = Goal("the goal", x=0.2, y=54.3)
    return plane(points, "Twice as continuous", x="ds (relative)", y="top-1 (%)", goal=goal)


def _perturbations() -> str:
    series = [
        Series(f"{depth}, {arm}", [found(v, 0.01) for v in values], mark)
        for depth, marker in (("ResNet-18", "o"), ("ResNet-50", "s"), (ODD, "^"))
        for arm, values, mark in (
            ("CE", (0.35, 0.3, 0.28, 0.41), Mark("grey", marker, filled=False)),
            ("constraint", (0.19, 0.16, 0.15, 0.22), Mark("blue", marker)),
        )
    ]
    groups = ("brightness", "contrast", "saturation", "hue")
    return by_perturbation(series, groups, "Half of it everywhere", y="ds (relative)")


def _alpha() -> str:
    sweep = {a: Point("", found(0.3 / a, 0.01), found(56 - a / 30, 0.5)) for a in (1.0, 3.0, 10.0)}
    levels = [
        Point("CE", found(0.332, 0.002), found(54.8, 0.6)),
        Point("CE, twice as long", found(0.339), found(54.9)),
        Point(ODD, found(0.334), found(NAN)),
    ]
    return over_alpha("cosine", sweep, levels, "α buys continuity", top1="top-1 (%)", ds="ds")


def _effects() -> str:
    sections = {
        "Continuity": [Row("against CE (n = 5)", found(0.54, 0.01), "holds", 0.75)],
        "Transfer": [
            Row(ODD, found(1.02, 0.1), "not shown", 1),
            Row("one seed", found(1.1), "does not hold", 1),
            Row("nothing", found(NAN)),
        ],
    }
    words = ("constraint better", "constraint worse")
    return effects(sections, "It halves ds", "ds / ds of CE", ratios=True, directions=words)


def _bars() -> str:
    series = [
        Series("CE (n = 5)", [found(97.9, 0.2), found(68.4, 2.1), found(31.2, 3.4)], Mark("grey")),
        Series(ODD, [found(97.2), found(95.8, 0.4), found(NAN)], Mark("blue")),
    ]
    groups = ("aligned", "random", "reversed")
    return bars(groups, series, "It reads the digit", "accuracy (%)", chance=10)


def _trajectories() -> str:
    steps = list(range(10, 610, 10))
    lines = [
        Line(f"run {i}", steps, [0.3 / i + 1 / s for s in steps], Mark("blue"), target=0.3 / i)
        for i in (1, 2, 3)
    ]
    alphas = [Line(ODD, steps, [None, *(s / 7 for s in steps[1:])], Mark("orange", "s"))]
    panels = [Panel("ds", lines), Panel("α", alphas, log=True)]
    return trajectories(panels, "Targets are kept")


ALL: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
    "plane": (_plane, ("Twice as continuous", "CE (n = 5)", ODD, "better ↖", "the goal")),
    "by_perturbation": (_perturbations, ("ResNet-50, constraint", f"{ODD}, CE", "hue")),
    "over_alpha": (_alpha, ("α buys continuity", "CE, twice as long", "top-1 (%)", ODD)),
    "effects": (_effects, ("0.54 [0.53, 0.55]", "1.10", "–", "not shown", "Transfer", ODD)),
    "bars": (_bars, ("97.9", "31.2", "chance", "reversed", ODD)),
    "trajectories": (_trajectories, ("run 1", "run 3", "its target", ODD)),
}


@pytest.fixture(scope="module", params=ALL)
def drawn(request: pytest.FixtureRequest) -> tuple[str, tuple[str, ...]]:
    paint, words = ALL[request.param]
    return paint(), words


def texts(svg: str) -> list[tuple[str, Box]]:
    """Every text with the box that it takes, from the file alone."""
    boxes = []
    for text in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        style = text.attrib["style"]
        size = float(re.search(r"font-size: ([\d.]+)px", style)[1])  # type: ignore[index]
        anchor = re.search(r"text-anchor: (\w+)", style)
        shift = {"middle": 0.5, "end": 1.0}.get(anchor[1] if anchor else "start", 0.0)
        x, y, width = (float(text.attrib[key]) for key in ("x", "y", "textLength"))
        left = x - shift * width
        boxes.append((text.text or "", (left, y - 0.76 * size, left + width, y + 0.2 * size)))
    return boxes


def covered(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def clashes(svg: str) -> list[tuple[str, str]]:
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(texts(svg), 2)
        if covered(a, b)
    ]


def test_a_file_is_small_whole_and_needs_nothing_else(drawn: tuple[str, tuple[str, ...]]) -> None:
    svg, _ = drawn
    root = ElementTree.fromstring(svg)
    assert root.attrib["width"] == "720"
    assert len(svg.encode()) <= 40_000
    links = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert all((a or b).startswith("#") for a, b in links)
    named = {name for pair in links for name in pair if name}
    assert named == {f"#{node.attrib['id']}" for node in root.iter() if "id" in node.attrib}
    assert "://" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(script|image|metadata|foreignObject)", svg)


def test_words_are_there_as_they_were_given(drawn: tuple[str, tuple[str, ...]]) -> None:
    svg, words = drawn
    shown = [text for text, _ in texts(svg)]
    for word in words:
        assert word in shown


def test_no_text_covers_another_or_leaves_the_panel(drawn: tuple[str, tuple[str, ...]]) -> None:
    svg, _ = drawn
    assert clashes(svg) == []
    height = float(ElementTree.fromstring(svg).attrib["height"])
    for text, (left, top, right, bottom) in texts(svg):
        assert 0 <= left < right <= 720, text
        assert 0 <= top < bottom <= height, text


@pytest.mark.parametrize("name", ALL)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    import matplotlib

    paint, _ = ALL[name]
    first = paint()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert paint() == first


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_fifteen_points_cover_neither_each_other_nor_a_marker(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = [
        Point(f"arm {i}, α = {10 * i} (n = 5)", found(x, 0.004), found(y, 0.4))
        for i, (x, y) in enumerate(zip(random.uniform(0.1, 0.35, 15), random.uniform(52, 57, 15)))
    ]
    svg = plane(points, "Fifteen", x="x", y="y")
    assert clashes(svg) == []
    marker = re.search(r'<g clip-path="[^"]*">\n<use href="#([^"]+)"[^>]*stroke: #ffffff', svg)
    assert marker is not None
    places = re.findall(rf'<use href="#{marker[1]}" x="([\d.]+)" y="([\d.]+)"', svg)
    assert len(places) == 16  # with the key's
    labels = [box for text, box in texts(svg) if text.startswith("arm")]
    for x, y in ((float(x), float(y)) for x, y in places):
        assert not any(covered((x - 4, y - 4, x + 4, y + 4), box) for box in labels)


def test_lengths_of_texts_are_what_matplotlib_measures() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=720)  # so fine that the rounding to pixels does not count
    renderer = FigureCanvasAgg(figure).get_renderer()
    for words, style in (("CE, both views (n = 5)", {}), (ODD, {"weight": "bold"})):
        text = figure.text(0, 0, words, fontsize=12, parse_math=False, **style)
        text.set_fontfamily("DejaVu Sans")
        measured = text.get_window_extent(renderer).width / 10
        assert size(words, 12, **style)[0] == pytest.approx(measured, rel=0.02)


def test_one_point_and_none() -> None:
    alone = Point("alone", found(0.2), found(55.0))
    assert "alone" in plane([alone], "One", x="x", y="y")
    assert "alone" not in plane([Point("alone", found(NAN), found(1))], "None", x="x", y="y")
    assert "one" in trajectories([Panel("y", [Line("one", [5], [2.0])], log=True)], "One")
    assert ElementTree.fromstring(trajectories([Panel("y", [])], "None")) is not None
    assert ElementTree.fromstring(over_alpha("", {}, [], "None", top1="a", ds="b")) is not None
    assert ElementTree.fromstring(bars(["a"], [], "None", "y")) is not None


def _tick(svg: str, words: str) -> float:
    """The middle of a tick's text in x."""
    (box,) = (box for text, box in texts(svg) if text == words)
    return (box[0] + box[2]) / 2


def test_ratios_have_a_logarithmic_axis_and_differences_a_linear_one() -> None:
    def forest(values: tuple[float, ...], *, ratios: bool) -> str:
        rows = [Row(f"row {i}", found(value)) for i, value in enumerate(values)]
        return effects({"": rows}, "T", "x", ratios=ratios, directions=("less", "more"))

    ratio = forest((0.25, 4.0), ratios=True)
    assert _tick(ratio, "1") - _tick(ratio, "0.5") == pytest.approx(
        _tick(ratio, "2") - _tick(ratio, "1"), abs=0.1
    )
    difference = forest((-4.0, 4.0), ratios=False)
    assert _tick(difference, "0") - _tick(difference, "−4") == pytest.approx(
        _tick(difference, "4") - _tick(difference, "0"), abs=0.1
    )
    alpha = _alpha()
    assert _tick(alpha, "3") - _tick(alpha, "1") == pytest.approx(
        (_tick(alpha, "10") - _tick(alpha, "1")) * math.log10(3), abs=0.1
    )


def test_an_interval_is_written_in_full() -> None:
    rows = [Row("wide", found(-0.3, 4.7), "not shown", -0.5), Row("far", found(-7, 1))]
    svg = effects(
        {"": rows}, "T", "x", ratios=False, directions=("worse", "better"), write="{:+.1f}".format
    )
    shown = [text for text, _ in texts(svg)]
    assert "−0.3 [−5.0, +4.4]" in shown
    assert "−7.0 [−8.0, −6.0]" in shown
    assert clashes(svg) == []


def test_a_label_shuns_what_it_must_not_cover() -> None:
    ((plain,), (pushed,)) = (
        place_labels([(100, 100)], [(40, 14)], (0, 0, 200, 200), hard=hard)
        for hard in ((), ((105, 60, 200, 140),))
    )
    assert plain[0] > 100
    assert pushed[2] < 105
    assert place_labels([], [], (0, 0, 1, 1)) == []


@pytest.mark.parametrize(
    ("low", "high"), [(0.9, 1.1), (0.3, 1.3), (1, 100), (1e-6, 1e6), (0.11, 0.35), (-8, 2)]
)
def test_ticks_are_plain_and_few(low: float, high: float) -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.set_xscale("log" if low > 0 else "linear")
    axis.set_xlim(low, high)
    ticks(axis.xaxis)
    axis.figure.draw_without_rendering()
    places = [x for x in axis.get_xticks() if low <= x <= high]
    shown = [tick.get_text() for tick in axis.get_xticklabels()]
    assert 2 <= len(places) <= 8, places
    assert {f"{x:.6g}".replace("-", "−") for x in places} <= set(shown)
    assert not any("$" in words or "-" in words for words in shown)
