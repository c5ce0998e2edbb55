"""README.md of an exported folder: the hub's model card, with an evaluation's figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastsc
from fastsc.cli.console import printable
from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.exporting.trained import Trained
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.reading import read_json

# question/name -> the words of the card, and the hub's type of the metric
SHOWN = {
    "continuity/top1": ("top-1", "accuracy"),
    "continuity/top1_perturbed": ("top-1, perturbed views", "accuracy"),
    "continuity/ds_relative": ("ds_relative", "ds_relative"),
    "continuity/flips": ("predictions that a perturbation flips", "flips"),
}

PLAIN = " with cross-entropy alone."
CONTINUOUS = (
    " with semantic continuity (Wu et al., [arXiv 2011.09789](https://arxiv.org/abs/2011.09789)): "
    "its representation should hardly move when light, contrast, saturation and hue of an image "
    "change."
)


@dataclass(frozen=True)
class Figures:
    """What an evaluation says of one model.

    Attributes:
        rows: By question/name: value, low, high, n.
        data: Name of the folder of images.
        split: Its part.
        date: Of the evaluation.
    """

    rows: Mapping[str, Fields]
    data: str
    split: str
    date: str


def read_figures(path: Path, model: str | None, run: Path) -> Figures:
    """The figures of results.json, of the named model or of the only one, which must be `run`.

    Raises:
        UserError: It is no such file, or which model is meant is open.
    """
    place = f"{path} is no results.json of fastsc.evaluate"
    document = Fields(read_json(path, place), place)
    metadata = document.inner("metadata")
    listed = document.values.get("results")
    if not isinstance(listed, list):
        document.wrong("results", "a list of figures")
    rows = [Fields(row, place) for row in listed]
    models = sorted({row.text("model") for row in rows})
    if model is None and len(models) > 1:
        raise UserError(f"{path} has several models: --results-model {' | '.join(models)}")
    if model is not None and model not in models:
        raise UserError(f"--results-model {model}: {path} has {', '.join(models) or 'none'}")
    evaluated = metadata.texts("models")
    if model is None and len(evaluated) == 1 and not _same(Path(evaluated[0]), run):
        raise UserError(
            f"{path} is of {printable(evaluated[0])}, not of {run}; if they are the same, "
            f"--results-model {models[0] if models else 'NAME'} says so"
        )
    figures = {
        f"{row.text('question')}/{row.text('name')}": row
        for row in rows
        if model in (None, row.values["model"])
    }
    if not figures.keys() & SHOWN.keys():
        raise UserError(f"{path} does not answer the question continuity, which a card shows")
    for key in figures.keys() & SHOWN.keys():
        for number in ("value", "low", "high"):
            if figures[key].values.get(number) is not None:  # undefined
                figures[key].number(number)
        figures[key].whole("n")
    return Figures(
        rows=figures,
        data=printable(Path(metadata.text("data")).name),
        split=printable(metadata.text("split")),
        date=metadata.text("date"),
    )


def _same(evaluated: Path, run: Path) -> bool:
    """Whether both are one run: its folder, or the weights in it."""
    folders = (
        (path.parent if path.name == "weights.safetensors" else path).resolve()
        for path in (evaluated, run)
    )
    return next(folders) == next(folders)


def model_card(trained: Trained, name: str, figures: Figures | None) -> str:
    """The card's text: the hub's YAML header, what the model is, its figures, how to load it."""
    needed("huggingface_hub", "the model card")
    from huggingface_hub import EvalResult, ModelCardData

    shown = [] if figures is None else [key for key in SHOWN if key in figures.rows]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=figures.data or "images",
            dataset_split=figures.split,
            metric_type=SHOWN[key][1],
            metric_name=SHOWN[key][0],
            metric_value=figures.rows[key].number("value"),
        )
        for key in shown
        if figures is not None and figures.rows[key].values.get("value") is not None
    ]
    header = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "fastsc"]
        + (["semantic-continuity"] if trained.plain is False else []),
        model_name=trained.name,
        eval_results=results or None,
    )
    preprocessing = trained.preprocessing
    lines = [
        "---",
        header.to_yaml().strip(),
        "---",
        "",
        f"# {trained.name}",
        "",
        f"`{name}`, {len(trained.classes)} classes, trained by fastsc"
        + ("." if trained.plain is None else PLAIN if trained.plain else CONTINUOUS)
        + f" Exported by fastsc {fastsc.__version__}.",
        "",
        f"Images: {preprocessing.resolution} px, the central "
        f"{preprocessing.val_crop:.4g} of the shorter side, {preprocessing.interpolation}, "
        f"mean {_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}.",
        "",
    ]
    if figures is not None:
        lines += [
            f"Measured by `fastsc.evaluate` on {figures.data}, {figures.split}, {figures.date}:",
            "",
            "| figure | value | 95 % interval | images |",
            "| --- | ---: | ---: | ---: |",
            *(_row(SHOWN[key][0], figures.rows[key]) for key in shown),
            "",
            "`ds_relative` is the mean distance between the representations of an image and of its "
            "perturbed view, over that between different images.",
            "",
        ]
    lines += [
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:PATH", pretrained=True)  # or hf-hub:USER/NAME',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(words: str, row: Fields) -> str:
    value, low, high = (_number(row.values.get(key)) for key in ("value", "low", "high"))
    interval = "–" if "–" in (low, high) else f"{low} to {high}"
    return f"| {words} | {value} | {interval} | {row.values['n']:,} |"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
