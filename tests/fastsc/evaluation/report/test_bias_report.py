"""The page on bias: its sentences, charts, pictures and table, out of answers that are made up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fastsc.datasets.colormnist import FOLDERS
from fastsc.evaluation.ask import comparisons
from fastsc.evaluation.questions.bias.axes import Dependence
from fastsc.evaluation.questions.bias.color_bias import Digit
from fastsc.evaluation.questions.bias.question import Bias
from fastsc.evaluation.report import sections
from fastsc.evaluation.report.page import render
from fastsc.evaluation.report.parts import Section, questions
from fastsc.evaluation.report.questions import bias
from fastsc.evaluation.results.answers import Example, Rows
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import KINDS
from tests.fastsc.evaluation.report.report_example import HOSTILE, STRENGTHS, picture, rows

CLASSES = (HOSTILE, "$cat$", "dog", "emu")


def answer(
    seed: int, *, colors: bool = True, axes: bool = True, out: Sequence[tuple[str, str, str]] = ()
) -> Bias:
    """With an axis table of four classes, of which those stand out."""
    rng = np.random.default_rng(seed)
    tables: dict[str, Rows] = {}
    measures: list[Measure] = []
    n = 40
    if colors:
        right = {name: (rng.random(n) < p).astype(float) for name, p in zip(FOLDERS, (1, 0.4, 0.2))}
        tables["colours"] = rows(n, gap=right["aligned"] - right["reversed"], **right)
        measures += [
            Measure(Name("accuracy", name), "share", "colours", (name,)) for name in FOLDERS
        ]
        measures.append(Measure(Name("gap"), "mean", "colours", ("gap",)))
        names = ("probe/colour", "probe/shape", "pixels/colour", "pixels/shape")
        tables["probes"] = rows(n, **{name: (rng.random(n) < 0.6).astype(float) for name in names})
        measures += [Measure(Name(*name.split("/")), "share", "probes", (name,)) for name in names]
    dependence: list[Dependence] = []
    if axes:
        columns: dict[str, Any] = {"between": rng.gamma(20, 0.5, n)}
        for kind in KINDS:
            columns[f"moved/{kind}"] = rng.gamma(4, 0.5, n)
            columns[f"flipped/{kind}"] = rng.binomial(2, 0.3, n) / 2
            measures += [
                Measure(Name("axis", kind), "ratio", "axes", (f"moved/{kind}", "between")),
                Measure(Name("axis_flips", kind), "rate", "axes", (f"flipped/{kind}",)),
            ]
        tables["axes"] = rows(n, **columns)
        for place, name in enumerate(CLASSES):
            for kind in KINDS:
                for what in ("moved", "flipped"):
                    value = 0.9 - place / 10
                    figures = value, value - 0.1, value + 0.05
                    named = (name, kind, what) in out
                    p = 1e-5 if named else 0.4
                    dependence.append(Dependence(name, kind, what, *figures, 10, p, named))  # type: ignore[arg-type]
    pixels = {name: picture(28)(place, None) for place, name in enumerate(FOLDERS)}
    return Bias(
        tables=tables,
        measures=tuple(measures),
        examples=(Example(2, (1.0, 1.0, 1.0, 0.1), ("hue alone",)),) if out else (),
        seed=seed,
        strengths=STRENGTHS,
        kinds=KINDS if axes else (),
        dependence=tuple(dependence),
        digits=(Digit("3/00001.png", pixels, dict(zip(FOLDERS, ("3", "4", "6")))),)
        if colors
        else (),
    )


def evaluation(*answers: Bias) -> Evaluation:
    names = ("plain", "<b>calm</b>")
    models = [
        Evaluated(
            name=name,
            answers={"bias": one},
            left_out={},
            picture=picture(32),
            facts={},
        )
        for name, one in zip(names, answers, strict=False)
    ]
    return Evaluation(
        models=tuple(models),
        comparisons=comparisons(models, 0),
        metadata={"seed": 0},
        image_name=lambda i: f"{HOSTILE}/{i}.png",
        class_name=lambda i: HOSTILE,
    )


def section_of(*answers: Bias) -> Section:
    (question,) = questions(evaluation(*answers))
    return sections.section(question)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without charts, which take a second."""
    monkeypatch.setattr(sections, "_charts", lambda *_: ())


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


OUT = [
    ("dog", "hue", "flipped"),
    (HOSTILE, "hue", "flipped"),
    ("$cat$", "brightness", "moved"),
]  # fmt: skip


def test_the_first_sentence_is_the_accuracy_by_color(undrawn: None) -> None:
    first = section_of(answer(0, out=OUT)).statements[0]
    found = answer(0, out=OUT)
    text = plain(first.sentences[0])
    assert text.startswith("Of test digits in their class’s color 100 % (91 to 100 %)")
    gap = found["gap"]
    points = re.search(
        r"the color is worth \+(\d+) points \(\+(\d+) to \+(\d+) points, n = 40\)", text
    )
    assert points is not None
    assert [float(one) for one in points.groups()] == pytest.approx(
        [100 * gap.value, 100 * gap.low, 100 * gap.high], abs=0.5
    )
    probes = plain(first.sentences[1])
    shape = found["probe/shape"]
    assert f"and the shape of {100 * shape.value:.0f} %" in probes
    assert f"raw pixels {100 * found['pixels/colour'].value:.0f} % and" in probes


def test_classes_that_stand_out_are_named_and_no_others(undrawn: None) -> None:
    said = section_of(answer(0, out=OUT)).statements[0]
    flips = plain(said.sentences[2])
    overall = 100 * answer(0)["axis_flips/hue"].value
    assert f": hue flips {HOSTILE} (90 %) and dog (70 %), against {overall:.0f} % over" in flips
    assert "$cat$" not in flips
    assert "brightness" not in flips
    moved = plain(said.more[1])
    assert ": brightness moves $cat$ (0.80), against" in moved
    assert "hue moves" not in moved
    tested = plain(said.more[2])
    assert "(10 images a class, 32 comparisons)" in tested
    assert "5 % at most" in tested


def test_many_classes_are_counted(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "NAMED", 2)
    out = [(name, "hue", "flipped") for name in CLASSES]
    assert "dog" not in section_of(answer(0, out=out)).statements[0].sentences[2]
    assert "and 2 more, against" in section_of(answer(0, out=out)).statements[0].sentences[2]


def test_where_none_stands_out_it_says_so(undrawn: None) -> None:
    said = section_of(answer(0)).statements[0]
    assert "No class’s prediction depends on one kind of change more" in said.sentences[2]
    assert "explains (4 classes)" in said.sentences[2]
    assert "No class’s representation moves" in said.more[1]
    assert not any(name in " ".join(said.sentences + said.more) for name in CLASSES)


def test_what_there_is_not_is_not_spoken_of() -> None:
    digits = section_of(answer(0, axes=False))
    assert len(digits.statements[0].sentences) == 2
    assert digits.statements[0].more == ()
    assert [group.title for group in digits.charts] == ["Color or shape"]
    assert "class is named" not in digits.reference
    axes = section_of(answer(0, colors=False))
    assert len(axes.statements[0].sentences) == 1
    assert [group.title for group in axes.charts] == [
        "Whose prediction each kind decides",
        "Whose representation each kind moves",
    ]
    assert "shapes" not in axes.reference
    assert axes.galleries == ()


def test_charts_have_a_row_a_class_and_a_star() -> None:
    groups = section_of(answer(0, out=OUT), answer(1)).charts
    assert [len(group.charts) for group in groups] == [2, 4, 4]
    for group in groups:
        for chart in group.charts:
            root = ElementTree.fromstring(str(chart.svg))
            texts = [
                "".join(node.itertext()).strip()
                for node in root.iter()
                if node.tag.endswith("text")
            ]
            if group is not groups[0]:
                shown = [text.removesuffix(" *") for text in texts]
                assert {"$cat$", "dog", "emu"} <= set(shown)
            stars = [text for text in texts if text.endswith(" *")]
            if group is groups[1] and chart.title.startswith("hue"):
                assert len(stars) == 2
                assert "dog *" in stars
            elif group is groups[2] and chart.title.startswith("brightness"):
                assert stars == ["$cat$ *"]
            else:
                assert stars == []
    bars = "".join(ElementTree.fromstring(str(groups[0].charts[0].svg)).itertext())
    assert "100" in bars
    assert f"{100 * answer(1)['accuracy/random'].value:.0f}" in bars


def test_only_the_classes_with_the_most_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "TOP", 2)
    hue = section_of(answer(0, out=[("emu", "hue", "moved")])).charts[2].charts[3]
    labels = str(hue.svg)
    assert "emu *" in labels  # it stands out, though it has the least
    assert "alert" in labels  # it has the most
    assert "dog" not in labels


def test_pictures_are_one_card_a_digit(undrawn: None) -> None:
    galleries = section_of(answer(0, out=OUT), answer(1)).galleries
    (card,) = galleries[0].cards
    assert [shot.caption for shot in card.shots] == [
        f"{name} – plain: {read}, <b>calm</b>: {read}" for name, read in zip(FOLDERS, "346")
    ]
    assert len({shot.uri for shot in card.shots}) == 3
    assert [gallery.title for gallery in galleries] == [
        "Digits whose color lies",
        "Classes that depend on one kind of change: plain",
    ]


def test_the_table_has_every_class_and_kind(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = section_of(answer(0, out=OUT), answer(1)).tables[-1]
    assert len(table.rows) == 16
    assert all(len(row) == 12 for row in table.rows)
    assert sum(span for _, span in table.groups) == 12
    cells = {(row[0].text, row[1].text): row for row in table.rows}
    row = cells["dog", "hue"]
    assert [plain(cell.text) for cell in row[2:7]] == [
        "0.70",
        "0.60 to 0.75",
        "70 % *",
        "60 to 75 %",
        "10",
    ]
    assert row[4].sort == 0.7
    assert plain(row[9].text) == "70 %"  # the other model's does not stand out
    monkeypatch.setattr(bias, "MOST_CLASSES", 2)
    table = section_of(answer(0, out=[("emu", "hue", "flipped"), ("dog", "hue", "moved")])).tables[
        -1
    ]
    assert {row[0].text for row in table.rows} == {"emu", "dog"}
    assert "2 of 4 classes" in table.caption


def test_models_are_compared(undrawn: None) -> None:
    found = section_of(answer(0), answer(1)).verdicts
    assert [one.figure for one in found] == [
        "Aligned less reversed colors", "Right in random colors",
        "Color read from the features", "Shape read from the features",
    ]  # fmt: skip
    found = section_of(answer(0, colors=False), answer(1, colors=False)).verdicts
    assert [one.figure for one in found] == [f"Flips under {kind} alone" for kind in KINDS]


def test_one_model_may_have_what_the_other_has_not(undrawn: None) -> None:
    found = section_of(answer(0, axes=False), answer(1, colors=False, out=OUT))
    assert [len(one.sentences) for one in found.statements] == [2, 1]
    assert found.galleries[0].cards[0].shots[0].caption == "aligned – plain: 3"


def test_names_are_text_on_the_page() -> None:
    page = render(evaluation(answer(0, out=OUT), answer(1)))
    assert HOSTILE not in page
    assert "<b>calm" not in page
    assert not re.search(r">\s*(nan|inf|None)\b", page)
    assert page.count('class="tiny"') >= 5
    assert "Class by class, each kind alone" in page
