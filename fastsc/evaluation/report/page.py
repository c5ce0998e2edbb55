"""The page of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from fastsc.cli.packages import needed
from fastsc.evaluation.report.method import definitions, flattened
from fastsc.evaluation.report.sections import left_out, sections
from fastsc.evaluation.report.sliders import sliders_section
from fastsc.evaluation.report.templates import html, own
from fastsc.evaluation.report.words import listed, number
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.results.store import write_text
from fastsc.plotting.inline import swatch

# Nothing is loaded, whatever a name on the page tries.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def write_report(path: Path, evaluation: Evaluation) -> None:
    """Writes the page, whole or not at all; the same evaluation gives the same bytes.

    Args:
        path: Of the HTML file; its folder is made.
        evaluation: With at least one model. Its pictures are decoded here.

    Raises:
        UserError: A package of the extra `eval` is missing, an image does not decode, or the disk
            does not take the file.
    """
    write_text(path, render(evaluation))


def render(evaluation: Evaluation) -> str:
    """The page as text."""
    needed("jinja2", "the page of an evaluation")
    assert evaluation.models, "an evaluation is of at least one model"
    shown = sections(evaluation)
    names = [model.name for model in evaluation.models]
    sliders = sliders_section(evaluation)
    return html(
        "page.html.j2",
        policy=POLICY,
        css=own("page.css") + own("shown.css") + (sliders.css if sliders else ""),
        js=own("page.js") + (sliders.js if sliders else ""),
        title=_title(names),
        names=[(name, swatch(slot)) for slot, name in enumerate(names)],
        about=_about(evaluation),
        sections=shown,
        sliders=sliders.html if sliders else "",
        left_out=left_out(evaluation),
        not_asked={
            question: why
            for model in evaluation.models
            for question, why in model.left_out.items()
            if question not in {section.key for section in shown}
        },
        definitions=definitions(evaluation),
        facts=_facts(evaluation),
        metadata=tuple(flattened(evaluation.metadata)),
    )


def _title(names: list[str]) -> str:
    who = listed(names) if len(names) < 4 else f"these {len(names)} models"
    return f"How continuous {'is' if len(names) == 1 else 'are'} {who}?"


def _about(evaluation: Evaluation) -> str:
    """Data, images, seed and day in a line."""
    known = evaluation.metadata
    split = f" ({known['split']})" if known.get("split") else ""
    parts = [f"Data: {known['data']}{split}"] if "data" in known else []
    if "images" in known:
        parts.append(f"{number(known['images'], 0)} images")
    parts += [f"{name} {known[name]}" for name in ("budget", "seed") if name in known]
    return " · ".join([*parts, known["date"]] if "date" in known else parts)


def _facts(evaluation: Evaluation) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is known of the models: (fact, one value per model)."""
    names = dict.fromkeys(fact for model in evaluation.models for fact in model.facts)
    return tuple(
        (name.replace("_", " "), tuple(str(m.facts.get(name, "–")) for m in evaluation.models))
        for name in names
    )
