"""The page's sliders: pictures recolored in the browser, the answers precomputed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fastsc.evaluation.report.templates import html, own
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.sliders import Grid, Positions
from fastsc.evaluation.views import KINDS
from fastsc.kernels.color import IDENTITY
from fastsc.plotting.inline import swatch


@dataclass(frozen=True)
class SlidersPart:
    """What the page takes up.

    Attributes:
        html: A whole <section id="sliders">, with its data.
        css: Its style, over the page's.
        js: Its script, closed in itself; it may stand before or after the section.
    """

    html: Markup
    css: Markup
    js: Markup


def sliders_section(evaluation: Evaluation) -> SlidersPart | None:
    """The sliders of every image to which all models with grids have one; None without any.

    Raises:
        UserError: A package of the extra `eval` is missing.
    """
    slots = [slot for slot, model in enumerate(evaluation.models) if model.grids]
    if not slots:
        return None
    asked = [evaluation.models[slot] for slot in slots]
    by_index = [{grid.index: grid for grid in model.grids} for model in asked]
    shared = [index for index in by_index[0] if all(index in own for own in by_index)]
    if not shared:
        return None
    grids = [[own[index] for index in shared] for own in by_index]  # a list a model
    positions = grids[0][0].positions
    assert all(grid.positions == positions for row in grids for grid in row), "models differ"
    captions = [_caption(evaluation, index) for index in shared]
    sliders = _sliders(positions)
    markup = html(
        "sliders.html.j2",
        captions=captions,
        combinations=len(grids[0][0].top),
        models=[
            {"name": model.name, "rows": row[0].top.shape[1], "slot": slot, "swatch": swatch(slot)}
            for slot, model, row in zip(slots, asked, grids, strict=True)
        ],
        not_asked=[model.name for model in evaluation.models if not model.grids],
        sliders=sliders,
        data=_data(asked, grids, captions, sliders),
    )
    return SlidersPart(Markup(markup), own("sliders.css"), _script())


def label(kind: str, value: float) -> str:
    """A position with its unit: 140 % of the image's own, or degrees of the color circle."""
    if kind != "hue":
        return f"{100 * value:.4g}\u00a0%"
    degrees = f"{abs(360 * value):.4g}°"
    return degrees if value == 0 else ("+" if value > 0 else "\u2212") + degrees


def _sliders(positions: Positions) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "labels": [label(kind, value) for value in values],
            "unchanged": values.index(same),
        }
        for kind, values, same in zip(KINDS, positions, IDENTITY, strict=True)
    ]


def _data(
    asked: list[Evaluated],
    grids: list[list[Grid]],
    captions: list[str],
    sliders: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the script reads; arrays as base64 of little-endian bytes."""
    first = grids[0]
    every = np.concatenate([grid.ds_relative for row in grids for grid in row])
    return {
        "positions": first[0].positions,
        "labels": [slider["labels"] for slider in sliders],
        "unchanged": [slider["unchanged"] for slider in sliders],
        "farthest": max(1.0, float(every[np.isfinite(every)].max(initial=0))),
        "images": [
            {"caption": caption, "side": grid.pixels.shape[0], "rgb": _packed(grid.pixels, "u1")}
            for caption, grid in zip(captions, first, strict=True)
        ],
        "models": [_model_data(model.name, row) for model, row in zip(asked, grids, strict=True)],
    }


def _model_data(name: str, row: list[Grid]) -> dict[str, Any]:
    called = {number: text for grid in row for number, text in grid.names.items()}
    numbers = np.array(sorted(called), np.int64)
    assert len(numbers) <= 1 << 16
    return {
        "name": name,
        "names": [called[number] for number in numbers.tolist()],
        "grids": [
            {
                "top": _packed(np.searchsorted(numbers, grid.top), "<u2"),
                "confidence": _packed(grid.confidence, "<f4"),
                "ds": _packed(grid.ds_relative, "<f4"),
            }
            for grid in row
        ],
    }


def _packed(array: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _caption(evaluation: Evaluation, index: int) -> str:
    name, folder = evaluation.image_name(index), evaluation.class_name(index)
    return name if not folder or name.startswith(f"{folder}/") else f"{folder}: {name}"


def _script() -> Markup:
    """Both scripts in a scope of their own."""
    script = Markup('(() => {\n"use strict";\n')
    script += own("recolor.js") + own("sliders.js") + Markup("})();\n")
    assert "</script" not in script, "it would end the page's script"
    return script
