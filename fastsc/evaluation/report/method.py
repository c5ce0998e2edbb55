"""What every measure means, how intervals are made, and what was run: the end of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastsc.evaluation.report.meanings import MEANINGS
from fastsc.evaluation.report.words import family, number
from fastsc.evaluation.results.answers import Measure
from fastsc.evaluation.results.evaluated import Evaluation


@dataclass(frozen=True)
class Definition:
    """A measure in words, and as a formula."""

    name: str
    words: str
    formula: str


_DEFINITIONS = {
    "top1": (
        "Share of the labelled images whose best class is the right one, unchanged.",
        "mean [argmax z(x) = y]",
    ),
    "top1_perturbed": (
        "The same of the images in other colours, one view each.",
        "mean [argmax z(x′) = y]",
    ),
    "ds": (
        "Distance that the representation f moves when an image x becomes its view x′ in other "
        "colours. It has no natural scale; see ds_relative.",
        "mean ‖f(x) − f(x′)‖₂",
    ),
    "ds_relative": (
        "The same over the mean distance between different images, j from a fixed keyed "
        "derangement: 0 is not at all, 1 as far as to another image. Over strength: one kind "
        "alone, both directions averaged, or all together within a multiple of the box.",
        "mean ‖f(x) − f(x′)‖₂ / mean ‖f(xᵢ) − f(xⱼ)‖₂",
    ),
    "flips": (
        "Share of images that are predicted as another class in other colours.",
        "mean [argmax z(x) ≠ argmax z(x′)]",
    ),
    "confidence_change": (
        "How the softmax probability p of the class predicted for the unchanged image changes.",
        "mean (p(x′)ₖ − p(x)ₖ), k = argmax z(x)",
    ),
    "flip_radius": (
        "Half of the images have flipped at a change no larger than this, of one kind alone: the "
        "median over images of the least change that flips the prediction. Each direction is "
        "walked in equal steps to the first flip and halved there; nothing is assumed of what lies "
        "further out, and a flip between two steps that is undone before the next is not seen. "
        "Brightness, contrast and saturation in % of the image’s own, hue in degrees of the colour "
        "circle.",
        "median min { |c| : argmax z(x at c) ≠ argmax z(x) }",
    ),
    "layers": (
        "ds_relative of a stage’s output, averaged over its positions.",
        "mean ‖s(x) − s(x′)‖₂ / mean ‖s(xᵢ) − s(xⱼ)‖₂",
    ),
    "chance": (
        "The same with the view of another image: what a stage shows that tells nothing of the "
        "image.",
        "mean ‖s(xᵢ) − s(xⱼ′)‖₂ / mean ‖s(xᵢ) − s(xⱼ)‖₂",
    ),
    "farther_than_random": (
        "Share of images whose view in other colours lies further from them than a random other "
        "image r of their class.",
        "mean [‖f(x) − f(x′)‖₂ > ‖f(x) − f(r)‖₂]",
    ),
    "farther_than_nearest": (
        "The same with the nearest other image of the class, among those that were searched.",
        "mean [‖f(x) − f(x′)‖₂ > minᵣ ‖f(x) − f(r)‖₂]",
    ),
    "spread": (
        "Within one class: mean distance of an image’s views from it over the mean distance of the "
        "class’s other images from it.",
        "mean ‖f(x) − f(x′)‖₂ / mean ‖f(x) − f(r)‖₂",
    ),
    "gradient_norm": (
        "Length of the gradient of the cross-entropy with respect to the pixels on [0, 1]; the "
        "class is the label where it is known, else the prediction.",
        "mean ‖∂ CE(z(x), y) / ∂x‖₂",
    ),
    "gradient_norm_perturbed": (
        "The same at the view in other colours, of the same class.",
        "mean ‖∂ CE(z(x′), y) / ∂x′‖₂",
    ),
    "gradient_cosine": (
        "Cosine of the two gradients: 1 is the same direction, 0 what unrelated ones have.",
        "mean ⟨g, g′⟩ / (‖g‖₂ ‖g′‖₂)",
    ),
    "lipschitz": (
        "Largest slope of the representation along one kind of change, in distances between images "
        "per unit of RMS pixel change; a lower bound of the local Lipschitz constant.",
        "mean maxₐ (‖f(x at a + δ) − f(x at a)‖₂ / mean ‖f(xᵢ) − f(xⱼ)‖₂) / RMS(pixels)",
    ),
}

INTERVALS = (
    "Every figure is over images, and its 95 % interval says how it would vary with other images "
    "of the same kind; it does not say how it would vary with another training of the model. "
    "Shares have Wilson’s score interval; means and ratios the bias-corrected and accelerated "
    "bootstrap’s (BCa) or, of many images, the bootstrap’s percentiles, as medians do; each table "
    "names the one that was used. A ratio’s two means are resampled together.",
    "Models are compared over the same images, resampled together: paired bootstrap, and for "
    "shares McNemar’s exact test. p is that of no difference, two-sided, and not corrected for the "
    "number of figures on this page: of twenty figures that do not differ, one is expected under "
    "0.05. “Smallest” is the difference that so many images would show with a power of 80 %.",
    "Changes of colour are those of torchvision’s adjust_brightness, adjust_contrast, "
    "adjust_saturation and adjust_hue, in that order, on the image as the model sees it: ±40 % is "
    "a factor from 0.6 to 1.4. The same seed gives every model the same images and colours.",
)


def definitions(evaluation: Evaluation) -> tuple[Definition, ...]:
    """Of every kind of measure on the page, in the order of their first appearance."""
    found: dict[str, Definition] = {}
    for model in evaluation.models:
        for question, answer in model.answers.items():
            for measure in answer.measures:
                name = family(measure.name)
                # Questions may call what they measure alike: each has its own accuracy.
                own = name in MEANINGS.get(question, {})
                key = f"{name} ({question})" if own else name
                if key not in found:
                    found[key] = _definition(question, name, key, measure)
    return tuple(found.values())


def _definition(question: str, name: str, title: str, measure: Measure) -> Definition:
    known = MEANINGS.get(question, {}).get(name) or _DEFINITIONS.get(name)
    if known is not None:
        return Definition(title, *known)
    columns = " over the mean of ".join(measure.columns)
    return Definition(
        name,
        f"Of the images in the table “{measure.table}”.",
        f"{measure.statistic} of {columns}",
    )


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """JSON values as lines: ("versions: torch", "2.11")."""
    for key, value in values.items():
        name = f"{prefix}: {key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flattened(value, name)
        elif value is not None:
            yield name.replace("_", " "), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return number(value, 0)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    return json.dumps(value, default=str)
