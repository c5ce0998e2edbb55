"""The page of an evaluation: what it says, that it holds, and that nothing in it is executed."""

from __future__ import annotations

import base64
import io
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastsc.errors import UserError
from fastsc.evaluation import QUESTIONS
from fastsc.evaluation.report import words
from fastsc.evaluation.report.page import render, write_report
from fastsc.evaluation.report.parts import questions
from fastsc.evaluation.report.pictures import data_uri
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.results.measures import Measure
from tests.fastsc.evaluation.report.report_example import HOSTILE, evaluation

pytestmark = pytest.mark.heavy

VOID = {"meta", "br", "img", "input", "link", "hr", "path", "use", "circle", "polygon", "rect"}
RAW = {"script", "style"}
NAN, INF = float("nan"), float("inf")


class Page(HTMLParser):
    """The elements of a page, its text without markup, and the rows of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in {"dt", "dd", "p", "li", "h2", "h3", "td", "th", "figcaption"}:
            self.texts.append(" ")
        if tag in VOID and (not self.open or self.open[-1] != tag):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not match"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in RAW:
            self.raw.append((self.open[-1], data))
            return
        self.texts.append(data)
        if self.open and {"td", "th"} & set(self.open) and self.rows:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """With plain spaces."""
        return " ".join("".join(self.texts).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def two() -> Evaluation:
    return evaluation(("plain", "constrained & <b>bold</b>"))


@pytest.fixture(scope="module")
def page(two: Evaluation) -> Page:
    return Page(render(two))


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_identical_calls_write_identical_bytes(
    two: Evaluation, page: Page, tmp_path: Path
) -> None:
    first, second = tmp_path / "a" / "report.html", tmp_path / "b.html"
    write_report(first, two)
    write_report(second, evaluation(tuple(model.name for model in two.models)))
    assert first.read_bytes() == second.read_bytes() == page.html.encode()
    assert [path.name for path in first.parent.iterdir()] == ["report.html"]


def test_a_folder_in_its_place_is_a_mistake_and_stays(tmp_path: Path) -> None:
    of = evaluation(n=12)
    of = replace(of, models=(replace(of.models[0], answers={}),))
    (tmp_path / "report.html" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"report\.html cannot be written"):
        write_report(tmp_path / "report.html", of)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_nothing_is_loaded(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "base", "iframe", "object", "embed", "form"} or (
            tag == "form" and "action" not in attributes
        )
        for name, value in attributes.items():
            if name in {"src", "srcset", "poster", "data", "action"}:
                assert value.startswith("data:image/"), (tag, name, value[:80])
            if "href" in name:
                assert value.startswith("#"), (tag, value)
            assert not name.startswith("on"), (tag, name)
    for found in re.findall(r"url\(([^)]*)", page.html):
        assert found.startswith("#"), found
    assert "@import" not in page.html
    outside = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page.html)
    outside = re.sub(r"^\s*//.*$", "", outside, flags=re.MULTILINE)  # a script's comments
    assert not re.search(r"https?:|[\"'(]//", outside)
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "img-src data:" in policies[0]


def test_the_policy_stands_before_everything_that_it_is_to_stop(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    policy = next(i for i, (_, a) in enumerate(page.elements) if a.get("http-equiv"))
    assert policy < min(tags.index("style"), tags.index("script"), tags.index("img"))


def test_names_are_text_only(two: Evaluation, page: Page) -> None:
    assert HOSTILE not in page.html
    assert HOSTILE in page.text
    assert "<b>" not in page.html
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == len([1 for tag, _ in page.raw if tag == "script"])
    assert all("alert" not in data for _, data in page.raw)
    labels = [attributes.get("aria-label", "") for _, attributes in page.elements]
    assert any(HOSTILE in label for label in labels)
    assert any(HOSTILE in attributes.get("alt", "") for _, attributes in page.elements)
    assert two.models[1].name in page.text
    assert "/data/<pets>" in page.text
    assert "no corrupted images <given>" in page.text


def test_ids_are_there_once_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")]
    targets += re.findall(r"url\(#([^)]+)\)", page.html)
    assert len(targets) > 100
    assert set(targets) <= set(ids)


def test_pictures_and_charts_say_what_they_show(page: Page) -> None:
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) >= 20
    assert all(attributes["alt"] for attributes in images)
    charts = [attributes for tag, attributes in page.elements if attributes.get("role") == "img"]
    charts = [attributes for attributes in charts if "viewbox" in attributes]
    assert len(charts) >= 15 + 4 + 1 + 3 + 6 + 3
    assert all(len(attributes["aria-label"]) > 10 for attributes in charts)
    assert all(re.fullmatch(r"0 0 [\d.]+ [\d.]+", chart["viewbox"]) for chart in charts)


# --- SVG -----------------------------------------------------------------------------------------


def test_svg_is_well_formed_and_takes_its_colors_from_the_page(page: Page) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL)
    assert len(drawn) > 30
    texts = 0
    for text in drawn:
        root = ElementTree.fromstring(text.replace("&nbsp;", " "))
        texts += len(root.findall(".//text"))
        colors = set(re.findall(r"#[0-9a-fA-F]{6}\b", text))
        assert colors <= set(), colors
        assert "DejaVu" not in text
        assert "metadata" not in text
    assert texts > 200  # text stays text
    style = next(data for tag, data in page.raw if tag == "style")
    used = set(re.findall(r"var\((--[a-z0-9]+)", " ".join(drawn)))
    assert {"--ink", "--grid", "--c0", "--c1", "--font"} <= used
    assert all(f"{variable}:" in style for variable in used)


# --- figures -------------------------------------------------------------------------------------


def every_measure(of: Evaluation) -> list[tuple[Answer, Measure]]:
    return [
        (answer, measure)
        for model in of.models
        for answer in model.answers.values()
        for measure in answer.measures
    ]


def test_every_figure_is_in_a_table_with_n_and_interval(two: Evaluation, page: Page) -> None:
    rows = {row[-1]: row for row in page.rows if row}
    found = every_measure(two)
    assert len({measure.name for _, measure in found}) > 80
    for place, model in enumerate(two.models):
        for answer in model.answers.values():
            for measure in answer.measures:
                estimate, unit = answer[measure.name], words.unit_of(measure)
                value, interval, n = rows[measure.name][1 + 3 * place : 4 + 3 * place]
                assert n == str(estimate.n) == "30"
                if np.isfinite(estimate.value):
                    shown = float(re.sub(r"[^\d.\-]", "", value.replace("−", "-")))
                    half = (estimate.high - estimate.low) / 2 * unit.scale
                    assert shown == pytest.approx(estimate.value * unit.scale, abs=half / 2)
                else:
                    assert re.search("does not flip within|not defined", value)
                if np.isnan(estimate.low):
                    assert interval == "no interval"
                else:
                    assert re.search(" to |^beyond", interval)
                assert estimate.method in rows[measure.name][-2]


def test_every_comparison_is_in_a_table(two: Evaluation, page: Page) -> None:
    rows = {row[-1]: row for row in page.rows if row}
    assert len(two.comparisons) > 80
    for one in two.comparisons:
        difference, interval, p, smallest = rows[one.name][7:11]
        if not np.isfinite(one.difference.value):
            continue
        assert (difference[0] == "−") == (one.difference.value < 0) or float(
            re.sub(r"[^\d.]", "", difference)
        ) == 0
        assert " to " in interval
        assert p == ("<\u00a00.001" if one.difference.p < 0.001 else p)
        assert smallest != "–"


def test_nan_and_infinity_are_words(page: Page) -> None:
    text = page.text
    assert "does not flip within +200 %" in text
    assert "beyond +200 %" in text
    assert "Broken: not defined (no interval, n = 30)" in text
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None)\b", text)


def test_what_was_left_out_is_named_with_its_reason(two: Evaluation, page: Page) -> None:
    text = page.text
    assert "Shifts Not answered: no corrupted images <given>" in text
    assert "neighbours, nearest (all models) it is searched among 50 images a class" in text


@pytest.mark.parametrize("side", [16, 64, 65, 224, 500])
def test_pictures_of_noise_fit_into_a_data_uri(side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    kind, _, data = data_uri(noise).partition(";base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.size == (min(side, 320),) * 2
    if side <= 64:
        assert kind == "data:image/png"
        assert np.array_equal(np.asarray(shown), noise)


def test_definitions_cover_every_measure(two: Evaluation, page: Page) -> None:
    text = page.text[page.text.rindex("Measures") :]
    for name in {measure.figure.family for _, measure in every_measure(two)}:
        assert f" {name} " in text
    assert "mean of rain" in text  # of a question that the page does not know


# --- models and questions ------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("names", [("alone",), ("a", "b", "c")])
def test_pages_of_one_and_of_three_models(names: Sequence[str]) -> None:
    of = evaluation(names, n=12, side=96)
    page = Page(render(of))
    assert f"How continuous {'are a, b and c' if len(names) > 1 else 'is alone'}?" in page.text
    judged = "less" in page.text[: page.text.index("How far the representation moves")]
    assert judged == (len(names) > 1)
    if len(names) > 1:
        assert page.text.count("c less a") > 3
    assert "data:image/jpeg;base64," in page.html  # 96 pixels are not tiny
    assert 'class="tiny"' not in page.html


@pytest.mark.usefixtures("undrawn")
def test_models_that_answer_different_questions(two: Evaluation) -> None:
    first, second = two.models
    of = replace(
        two,
        models=(
            replace(first, answers={"continuity": first.answers["continuity"]}),
            replace(second, answers={"gradients": second.answers["gradients"]}),
        ),
        comparisons=(),
    )
    found = questions(of)
    assert [question.name for question in found] == ["continuity", "gradients"]
    assert [asked.slot for question in found for asked in question.asked] == [0, 1]
    text = Page(render(of)).text
    assert "Where the gradient turns most: constrained" in text


def test_an_evaluation_without_answers_is_a_page(two: Evaluation) -> None:
    model = replace(two.models[0], answers={}, left_out={"continuity": "one image"})
    text = Page(render(replace(two, models=(model,), comparisons=()))).text
    assert "Continuity Not answered: one image" in text


def test_without_jinja2_a_line_says_what_to_install(
    two: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match="pip install jinja2"):
        render(two)


def test_the_package_holds_the_pages_files(monkeypatch: pytest.MonkeyPatch) -> None:
    root, told = Path(__file__).parents[4], {}
    monkeypatch.setattr("setuptools.setup", lambda **options: told.update(options))
    runpy.run_path(str(root / "setup.py"))
    held = {
        path
        for package, patterns in told["package_data"].items()
        for pattern in patterns
        for path in (root / package.replace(".", "/")).glob(pattern)
    }
    report = root / "fastsc" / "evaluation" / "report"
    wanted = {path for path in report.rglob("*") if path.suffix in {".j2", ".css", ".js", ".yaml"}}
    assert len(wanted) >= 3 + len(QUESTIONS)
    assert wanted <= held
