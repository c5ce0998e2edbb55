"""The page's section on robustness, of one model, of two, and without the library."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from fastsc.evaluation.questions.robustness.question import ATTACKS, Robustness, robustness
from fastsc.evaluation.report.parts import questions
from fastsc.evaluation.report.sections import section as section_of
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.views import Viewer
from fastsc.pipelines import Pipeline
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import needs_library
from tests.fastsc.evaluation.questions.robustness_cases import (
    N,
    Quantized,
    asked,
    linear,
    no_search,
    noisy,
    predicted,
)

pytestmark = pytest.mark.heavy

__all__ = ["no_search", "noisy"]  # fixtures


def page(answers: Mapping[str, Robustness], pipeline: Pipeline) -> Any:
    models = tuple(
        Evaluated(
            name=name,
            answers={"robustness": answer},
            left_out={},
            picture=Viewer(linear(), pipeline).picture,
            facts={},
        )
        for name, answer in answers.items()
    )
    (question,) = questions(
        Evaluation(
            models=models,
            comparisons=(),
            metadata={},
            image_name=lambda i: f"<b>/{i}.png",
            class_name=lambda i: "<b>",
        )
    )
    return section_of(question)


@pytest.mark.usefixtures("undrawn")
@needs_library
def test_the_section_of_one_model(noisy: Pipeline) -> None:
    answer = asked(linear(), noisy, attacks=ATTACKS)
    section = page({"one": answer}, noisy)
    (said,) = section.statements
    text = " ".join(said.sentences).replace("\u00a0", " ")
    for level, name in (
        ("1/255, a single", "linf/1"),
        ("RMS 0.25/255 (a length of 0.014", "l2/0.25"),
    ):
        value = answer[f"accuracy/worst/{name}"].value
        assert level in text
        assert f"{100 * value:.0f} % of the images are still right" in text
    assert "of 89 % (57 to 98 %) unattacked" in text
    assert "random colors" in text
    assert "masked" not in text
    assert said.more == ("No sign of masked gradients was seen.",)
    linf, l2, photometric = section.charts
    assert [chart.title.split(",")[0] for chart in linf.charts] == [
        "Worst of all", "FGSM", "PGD", "Square", "Random noise",
    ]  # fmt: skip
    square = answer["accuracy/square/linf/2"].value
    assert linf.charts[3].caption.replace("\u00a0", " ") == f"At 2/255: {100 * square:.0f} %"
    assert len(l2.charts) == len(photometric.charts) == 1
    adversaries, colors = section.galleries
    shots = adversaries.cards[0].shots
    assert [shot.caption.split(" ")[0] for shot in shots] == ["unchanged", "changed", "the"]
    assert len({shot.uri for shot in shots}) == 3
    assert len(colors.cards) == 4


@pytest.mark.usefixtures("undrawn")
@needs_library
def test_the_section_of_two_models_one_of_which_is_masked(noisy: Pipeline) -> None:
    honest = linear(0.5)
    labels = predicted(honest, noisy)
    answers = {
        name: robustness(model, noisy, labels=labels)
        for name, model in (
            ("honest", honest),
            ("masked", tiny.classifier(Quantized(honest.net))),
        )
    }
    section = page(answers, noisy)
    first, second = section.statements
    assert not any("masked" in sentence for sentence in first.sentences)
    assert "Its gradients seem to be masked" in second.sentences[-1]
    assert f"exactly zero at {N} of {N} images" in second.sentences[-1]
    assert second.more == ()
    assert "honest" in section.charts[0].charts[0].caption
    assert any(gallery.title.endswith(": honest") for gallery in section.galleries)


@pytest.mark.usefixtures("undrawn")
def test_no_library(noisy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    found = robustness(linear(), noisy, n=None)
    assert found.attacks == ()
    assert "pip install --no-deps torchattacks" in found.left_out[0]
    # What needs no library is answered.
    assert {m.name for m in found.measures} == {
        "accuracy/clean", "photometric/random", "photometric/worst",
    }  # fmt: skip
    assert "Within the box" in str(page({"m": found}, noisy))
