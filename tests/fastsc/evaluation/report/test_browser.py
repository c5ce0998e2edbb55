"""The sliders in a browser: their colors against `pair_view`, their answers against the grids."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastsc.evaluation.report import sliders as section
from fastsc.evaluation.report.page import POLICY, write_report
from fastsc.evaluation.report.sliders import sliders_section
from fastsc.evaluation.report.templates import own
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.sliders import Grid
from fastsc.kernels import pair_view
from tests.fastsc.evaluation import slider_cases
from tests.fastsc.evaluation.report.chromium import CHROMIUM, MISSING, Page, browse
from tests.fastsc.evaluation.slider_cases import NASTY, by_torchvision

pytestmark = pytest.mark.heavy

NODE = shutil.which("node")
CLOSE = 2  # of 255
PIXELS = """(selector) => {
  const canvas = document.querySelector(selector);
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
}"""
UNCHANGED, RIGHT, LEFT = (2, 2, 2, 2), 39, 37

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node: apt-get install nodejs")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


# --- the colors ---------------------------------------------------------------------------------


def color_cases() -> list[tuple[str, NDArray[np.uint8], list[float]]]:
    """Name, picture (R, R, 3), factors."""
    rng = np.random.default_rng(5)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    pictures = {
        "noise": rng.integers(0, 256, (24, 24, 3), np.uint8),
        "smooth": slider_cases.smooth(rng, 24),
        "dark": rng.integers(0, 12, (24, 24, 3), np.uint8),
        "grey": np.repeat(levels, 3, 2),
        "black": np.zeros((8, 8, 3), np.uint8),
        "white": np.full((8, 8, 3), 255, np.uint8),
        "pure": rng.choice(np.array([0, 255], np.uint8), (24, 24, 3)),
        "two alike": np.concatenate([np.repeat(levels, 2, 2), levels[::-1]], 2),
        "one pixel": np.array([[[200, 30, 90]]], np.uint8),
    }
    factors = [
        [1, 1, 1, 0],
        [0, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0.5],
        [1, 1, 1, -0.5],
        [3, 3, 3, 0.25],
        [1, 20, 20, -0.01],
        [50, 0.5, 8, 1 / 6],
        *rng.uniform([0.2, 0.2, 0, -0.5], [2.5, 2.5, 3, 0.5], (8, 4)).tolist(),
        *rng.uniform([0.6, 0.6, 0.6, -0.1], [1.4, 1.4, 1.4, 0.1], (4, 4)).tolist(),
    ]
    return [(name, picture, row) for name, picture in pictures.items() for row in factors]


def color_script(cases: list[tuple[str, NDArray[np.uint8], list[float]]]) -> str:
    """An expression: the cases recolored by recolor.js, as base64 of RGBA bytes."""
    given = [
        {"rgb": base64.b64encode(picture.tobytes()).decode(), "factors": row}
        for _, picture, row in cases
    ]
    recolor = (Path(section.__file__).parent / "recolor.js").read_text()
    return f"""(() => {{ 'use strict'; {recolor}
      const bytes = (text) => Uint8ClampedArray.from(atob(text), (c) => c.charCodeAt(0));
      return {json.dumps(given)}.map(({{rgb, factors}}) =>
        btoa(String.fromCharCode(...recolor(bytes(rgb), factors))));
    }})()"""


def by_node(script: str, request: pytest.FixtureRequest) -> list[str]:
    assert NODE is not None
    command = f"process.stdout.write(JSON.stringify({script}))"
    done = subprocess.run([NODE, "-"], input=command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def by_chromium(script: str, request: pytest.FixtureRequest) -> list[str]:
    page: Page = request.getfixturevalue("page")
    found: list[str] = page.run(script)
    return found


def from_pair_view(picture: NDArray[np.uint8], factors: Any) -> NDArray[np.float32]:
    """(R, R, 3) levels 0..255, not rounded."""
    table = torch.tensor([factors], dtype=torch.float32)
    _, view = pair_view(torch.from_numpy(picture)[None], table, (0, 0, 0), (1, 1, 1))
    levels: NDArray[np.float32] = view[0].permute(1, 2, 0).numpy() * 255
    return levels


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(by_node, id="node", marks=needs_node),
        pytest.param(by_chromium, id="chromium", marks=needs_chromium),
    ],
)
def test_colors_are_those_of_pair_view_and_torchvision(
    engine: Any, request: pytest.FixtureRequest
) -> None:
    cases = color_cases()
    found = engine(color_script(cases), request)
    assert len(found) == len(cases)
    for (name, picture, factors), text in zip(cases, found, strict=True):
        side = len(picture)
        rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(side, side, 4)
        assert (rgba[..., 3] == 255).all()
        rgb = rgba[..., :3].astype(float)
        where = f"{name}, {factors}"
        assert np.abs(rgb - from_pair_view(picture, factors)).max() <= CLOSE, where
        assert np.abs(rgb - by_torchvision(picture, tuple(factors))).max() <= CLOSE, where
        if factors == [1, 1, 1, 0]:
            assert np.array_equal(rgb, picture), where


# --- the sliders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return slider_cases.two_models()


def write_section(path: Path, evaluation: Evaluation) -> None:
    """The section in the smallest page; the script first."""
    part = sliders_section(evaluation)
    assert part is not None
    path.write_text(
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
        <meta http-equiv="Content-Security-Policy" content="{POLICY}">
        <meta name="viewport" content="width=device-width">
        <style>{own("page.css")}{own("shown.css")}{part.css}</style><script>{part.js}</script></head>
        <body>{part.html}</body></html>""",
        encoding="utf-8",
    )


@pytest.fixture(scope="module", params=[write_section, write_report], ids=["alone", "report"])
def path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, evaluation: Evaluation
) -> Path:
    """A page with the sliders of two models."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    request.param(path, evaluation)
    return path


@pytest.fixture
def opened(page: Page, path: Path) -> Page:
    page.open(path)
    return page


def move(page: Page, steps: tuple[int, ...]) -> None:
    """Sets the sliders, as dragging them does."""
    page.run(
        f"""document.querySelectorAll("input[type=range]").forEach((input, kind) => {{
          input.value = {list(steps)}[kind];
          for (const name of ["input", "change"])
            input.dispatchEvent(new Event(name, {{bubbles: true}}));
        }})"""
    )


def at_of(steps: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(steps, (5, 5, 5, 5)))


def picture_of(page: Page, selector: str) -> NDArray[np.uint8]:
    data = np.frombuffer(base64.b64decode(page.run(f"({PIXELS})({selector!r})")), np.uint8)
    side = round((len(data) / 4) ** 0.5)
    return data.reshape(side, side, 4)[..., :3]


def check_shown(page: Page, evaluation: Evaluation, number: int, steps: tuple[int, ...]) -> None:
    """Everything that depends on the image and the positions is what the grids say."""
    grids = [model.grids[number] for model in evaluation.models]
    factors = tuple(values[step] for values, step in zip(grids[0].positions, steps, strict=True))
    levels = from_pair_view(grids[0].pixels, factors)
    assert np.abs(picture_of(page, ".sliders-recolored") - levels).max() <= CLOSE
    assert np.array_equal(picture_of(page, ".sliders-unchanged"), grids[0].pixels)

    inputs = page.run(
        """[...document.querySelectorAll("input[type=range]")].map((input) =>
          [Number(input.value), input.getAttribute("aria-valuetext"),
           document.querySelector(`output[for=${input.id}]`).textContent])"""
    )
    labels = [
        section.label(kind, factor) for kind, factor in zip(section.KINDS, factors, strict=True)
    ]
    assert inputs == [[step, text, text] for step, text in zip(steps, labels, strict=True)]

    panels = page.run(
        """[...document.querySelectorAll(".sliders-model")].map((panel) => {
          const texts = (selector) =>
            [...panel.querySelectorAll(selector)].map((one) => one.textContent);
          const widths = (selector) =>
            [...panel.querySelectorAll(selector)].map((one) => parseFloat(one.style.width));
          return {
            name: texts("h3 span")[0], verdict: texts(".sliders-verdict")[0],
            names: texts("li .sliders-name"), numbers: texts("li .sliders-number"),
            bars: widths("li .sliders-bar > span"), ds: texts(".sliders-ds .sliders-number")[0],
            dsBar: widths(".sliders-ds .sliders-bar > span")[0], count: texts(".sliders-count")[0],
          };
        })"""
    )
    every = [grid.ds_relative for model in evaluation.models for grid in model.grids]
    assert [panel["name"] for panel in panels] == [model.name for model in evaluation.models]
    for panel, grid in zip(panels, grids, strict=True):
        check_panel(panel, grid, at_of(steps), max(1.0, float(np.max(every))))


def check_panel(panel: dict[str, Any], grid: Grid, at: int, farthest: float) -> None:
    assert panel["names"] == [grid.names[number] for number in grid.top[at].tolist()]
    shown = [float(text.removesuffix("\u00a0%")) for text in panel["numbers"]]
    assert shown == pytest.approx(100 * grid.confidence[at], abs=0.0501)
    assert panel["bars"] == pytest.approx(100 * grid.confidence[at], rel=1e-3)
    assert float(panel["ds"]) == pytest.approx(grid.ds_relative[at], abs=0.000501)
    assert panel["dsBar"] == pytest.approx(100 * grid.ds_relative[at] / farthest, abs=0.01)
    best, before = (grid.names[int(grid.top[row, 0])] for row in (at, grid.unchanged))
    if at == grid.unchanged:
        assert panel["verdict"] == f"Prediction: {before}"
    elif best == before:
        assert panel["verdict"] == f"✓ Same prediction: {before}"
    else:
        assert panel["verdict"] == f"⇄ Flipped: {before} → {best}"
    flips = int((grid.top[:, 0] != grid.top[grid.unchanged, 0]).sum())
    assert panel["count"].startswith(f"Flipped at {flips} of all 625 combinations (")


@needs_chromium
def test_moving_choosing_and_going_back(opened: Page, evaluation: Evaluation) -> None:
    check_shown(opened, evaluation, 0, UNCHANGED)
    for steps in ((0, 0, 0, 0), (4, 4, 4, 4), (1, 3, 0, 4), (2, 2, 2, 3), UNCHANGED):
        move(opened, steps)
        check_shown(opened, evaluation, 0, steps)
    move(opened, (3, 0, 4, 1))
    opened.run('document.querySelectorAll("input[type=radio]")[1].click()')
    check_shown(opened, evaluation, 1, (3, 0, 4, 1))  # the colors stay
    opened.run('document.querySelector(".sliders-reset").click()')
    check_shown(opened, evaluation, 1, UNCHANGED)
    assert opened.errors == []


@needs_chromium
def test_the_keyboard_alone_suffices(opened: Page, evaluation: Evaluation) -> None:
    focused = "document.activeElement.id || document.activeElement.className"
    while opened.run("document.activeElement.type") != "radio":
        opened.press("Tab", 9)
    opened.press("ArrowRight", RIGHT)
    check_shown(opened, evaluation, 1, UNCHANGED)
    told = 'document.querySelector(".sliders-status").textContent'
    assert opened.run(told).count("Prediction: ") == 2
    for kind in section.KINDS:
        opened.press("Tab", 9)
        assert opened.run(focused) == f"sliders-{kind}"
        opened.press("ArrowRight", RIGHT)
        if kind == "contrast":
            opened.press("End", 35)
        if kind == "hue":
            for _ in range(5):  # one more than there are positions on that side
                opened.press("ArrowLeft", LEFT)
    check_shown(opened, evaluation, 1, (3, 4, 3, 0))
    status = opened.run(told)
    for model in evaluation.models:
        grid = model.grids[1]
        assert f"{model.name}: " in status
        assert f"{grid.names[int(grid.top[at_of((3, 4, 3, 0)), 0])]}, " in status
    opened.press("Tab", 9)
    assert opened.run(focused) == "sliders-reset"
    opened.press(" ", 32)
    check_shown(opened, evaluation, 1, UNCHANGED)
    assert opened.errors == []


@needs_chromium
def test_a_flip_is_told_by_more_than_color(opened: Page, evaluation: Evaluation) -> None:
    grid = evaluation.models[0].grids[0]
    flipped = grid.top[:, 0] != grid.top[grid.unchanged, 0]
    for at in (int(np.flatnonzero(flipped)[0]), int(np.flatnonzero(~flipped)[0])):
        move(opened, tuple(int(i) for i in np.unravel_index(at, (5, 5, 5, 5))))
        verdict = 'document.querySelector(".sliders-verdict")'
        weight = opened.run(f"Number(getComputedStyle({verdict}).fontWeight)")
        assert (weight >= 600) == flipped[at]
        assert ("Flipped" in opened.run(f"{verdict}.textContent")) == flipped[at]


@needs_chromium
def test_names_stay_text(opened: Page) -> None:
    assert opened.run('document.querySelectorAll(".sliders script").length') == 1  # the data
    assert NASTY in opened.run('document.querySelectorAll(".sliders h3 > span")[1].textContent')
    assert NASTY in opened.run('document.querySelector(".sliders-caption").textContent')
    seen = set()
    for step in range(5):
        move(opened, (step, 2, 2, 4))
        seen |= set(
            opened.run(
                '[...document.querySelectorAll("li .sliders-name")].map((n) => n.textContent)'
            )
        )
    assert {NASTY, "</script><b>lynx</b>"} <= seen
    assert opened.run('document.querySelectorAll(".sliders-name *").length') == 0
    assert opened.errors == []


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, path: Path, dark: bool) -> None:
    page.open(path, width=390, height=800, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= 390
    tops = 'document.querySelectorAll(".sliders-model")'
    first, second = page.run(f"[...{tops}].map((one) => one.getBoundingClientRect().top)")
    assert first < second, "the models are not stacked"
    assert page.errors == []


@needs_chromium
def test_errors_would_be_seen(page: Page, tmp_path: Path) -> None:
    for script in ("nothing.there()", "console.error('no')", "fetch('https://example.org')"):
        path = tmp_path / "page.html"
        path.write_text(
            f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
            <script>{script}</script>"""
        )
        page.open(path)
        for _ in range(100):
            page.run("0")  # takes in what has been told meanwhile
            if page.errors:
                break
            time.sleep(0.02)
        assert page.errors, script
