"""The page's sentences and numbers, from figures that are known, and its pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsc.evaluation.report import pictures, words
from fastsc.evaluation.report.parts import questions
from fastsc.evaluation.report.sections import sections
from fastsc.evaluation.report.tables import reach, verdicts
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.results.measures import Name
from fastsc.evaluation.results.statistics import Difference, Estimate
from tests.fastsc.evaluation.report import report_example
from tests.fastsc.evaluation.report.report_example import evaluation

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def two() -> Evaluation:
    return evaluation(("plain", "constrained"), n=12)


# --- sentences -----------------------------------------------------------------------------------


def known(found: dict[str, Estimate]) -> Any:
    """A continuity answer with these figures and no others."""
    answer = report_example.continuity(0, 12, 1.0)
    measures = tuple(measure for measure in answer.measures if measure.name in found)
    answer = replace(answer, measures=measures, tables={}, examples=())
    answer.__dict__["estimates"] = found
    return answer


def said(answer: Answer) -> str:
    of = evaluation(n=12)
    model = replace(of.models[0], answers={answer.question: answer})
    (section,) = sections(replace(of, models=(model,), comparisons=()))
    return " ".join(section.statements[0].sentences).replace("\u00a0", " ")


def test_the_sentence_on_continuity() -> None:
    text = said(
        known(
            {
                "ds_relative": Estimate(0.2812, 0.2611, 0.3021, 334, 0, "BCa"),
                "flips": Estimate(0.1234, 0.09, 0.16, 334, 0, "Wilson"),
                "top1": Estimate(0.892, 0.855, 0.921, 334, 0, "Wilson"),
            }
        )
    )
    assert text.startswith(
        "Changing light and colors within ±40 % (hue ±36°) moves the representation by 0.28 of "
        "the distance between different images (0.26 to 0.30, n = 334); 12 % of predictions flip "
        "(9 to 16 %)."
    )
    assert "Right on 89 % of the labelled images (86 to 92 %, n = 334)" in text


def test_the_sentence_on_flip_radii() -> None:
    def radius(value: float, low: float = NAN, high: float = NAN) -> Estimate:
        return Estimate(value, low, high, 64, 0, "percentile")

    found = {
        "brightness/down": radius(INF), "brightness/up": radius(0.38, 0.31, 0.45),
        "contrast/down": radius(0.52, 0.44, INF), "contrast/up": radius(1.2, 1.0, 1.4),
        "saturation/down": radius(INF, 0.9, INF), "saturation/up": radius(INF, 1.9, INF),
        "hue/down": radius(0.25, 0.2, 0.3), "hue/up": radius(0.3, 0.2, 0.4),
    }  # fmt: skip
    text = said(known({f"flip_radius/{name}": one for name, one in found.items()}))
    assert text == (
        "Half of the images flip before +38 % brightness (+31 to +45 %), −52 % contrast (−44 % to "
        "beyond −100 %) and −90° hue (−72 to −108°); n = 64. Fewer than half flip when nothing but "
        "saturation (within −100 % to +200 %) changes."
    )


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (
            Difference(-0.124, -0.146, -0.101, 334, 0, 0.0002, 0.02),
            ("−0.12 (−0.15 to −0.10)", "more than chance explains (p < 0.001, n = 334)"),
        ),
        (
            Difference(0.01, -0.01, 0.03, 334, 0, 0.41, 0.0213),
            (
                "+0.01 (−0.01 to +0.03)",
                "may be chance (p = 0.41, n = 334); with 334 images a difference under 0.021 would "
                "not show",
            ),
        ),
        (Difference(NAN, NAN, NAN, 3, 0, NAN, NAN), ("not defined", "the two cannot be compared")),
    ],
)
def test_verdicts(two: Evaluation, difference: Difference, expected: tuple[str, str]) -> None:
    compared = next(c for c in two.comparisons if c.name == "ds_relative")
    of = replace(two, comparisons=(replace(compared, difference=difference),))
    (verdict,) = verdicts(questions(of)[0], {"ds_relative": "Movement"})
    assert verdict.figure == "Movement"
    assert verdict.models == f"{two.models[1].name} less plain"
    shown = (verdict.difference, verdict.judged)
    assert tuple(text.replace("\u00a0", " ") for text in shown) == expected


def test_a_difference_of_shares_is_in_points() -> None:
    of = Difference(-0.021, -0.06, 0.02, 334, 0, 0.3, 0.0212)
    assert words.smallest_text(of, words.PERCENT).replace("\u00a0", " ") == (
        "with 334 images a difference under 2.1 points would not show"
    )


def test_a_question_without_labels_has_no_sentence_on_them() -> None:
    text = said(known({"ds_relative": Estimate(0.3, 0.2, 0.4, 64, 0, "BCa")}))
    assert "Right on" not in text
    assert "moves the representation" in text


# --- words and pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.28123, 0.26, 0.3021, "0.28 (0.26 to 0.30, n = 9)"),
        (0.28123, 0.2797, 0.2827, "0.2812 (0.2797 to 0.2827, n = 9)"),
        (-0.0004, -0.03, 0.03, "0.00 (−0.03 to 0.03, n = 9)"),
        (12345.6, 11000, 13000, "12\u202f346 (11\u202f000 to 13\u202f000, n = 9)"),
        (0.5, 0.5, 0.5, "0.500 (0.500 to 0.500, n = 9)"),
        (NAN, NAN, NAN, "not defined (no interval, n = 9)"),
        (INF, 0.5, INF, "beyond the range (0.500 to beyond the range, n = 9)"),
        (3.21e-5, 3.2e-5, 3.3e-5, "3.21 × 10⁻⁵ (3.20 × 10⁻⁵ to 3.30 × 10⁻⁵, n = 9)"),
    ],
)
def test_the_interval_decides_the_digits(
    value: float, low: float, high: float, expected: str
) -> None:
    figure = words.Figure(Estimate(value, low, high, 9, 0, "BCa"))
    assert str(figure).replace("\u00a0", " ") == expected


def test_units() -> None:
    assert words.strength_text("brightness", 0.4) == "±40\u00a0%"
    assert words.strength_text("hue", 0.1) == "±36°"
    assert words.strength_text("together", 1.5) == "×1.5"
    text = words.factors_text((1.38, 0.88, 1.0, -0.0555)).replace("\u00a0", " ")
    assert text == "brightness +38 %, contrast −12 %, hue −20°"
    assert words.factors_text((1, 1, 1, 0)) == "unchanged"
    answer = report_example.continuity(0, 12, 1.0)
    assert reach(answer, Name("flip_radius", "hue", "down")) == "−180°"
    assert reach(answer, Name("flip_radius", "contrast", "down")) == "−100\u00a0%"
    assert reach(answer, Name("flips")) is None


@pytest.mark.parametrize(("side", "kind"), [(32, "PNG"), (64, "PNG"), (65, "JPEG"), (500, "JPEG")])
def test_pictures_as_data(side: int, kind: str) -> None:
    pixels = report_example.picture(side)(1, None)
    head, data = pictures.data_uri(pixels).split(",")
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{kind.lower()};base64"
    assert found.format == kind
    assert max(found.size) == min(side, pictures.LARGEST)
    if kind == "PNG":
        assert np.array_equal(np.asarray(found), pixels)
    else:
        scaled = Image.fromarray(pixels).resize(found.size, Image.Resampling.LANCZOS)
        error = np.abs(np.asarray(found, float) - np.asarray(scaled, float))
        assert error.mean() < 3
