"""The page of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fastsc.cli.packages import needed
from fastsc.evaluation.report.method import definitions, flattened
from fastsc.evaluation.report.parts import Section
from fastsc.evaluation.report.sections import left_out, sections
from fastsc.evaluation.report.sliders import sliders_section
from fastsc.evaluation.report.templates import html, own
from fastsc.evaluation.report.words import listed
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.pipelines.disk import doing
from fastsc.plotting.inline import swatch, unique_ids
from fastsc.run.checkpoint import write_atomically

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
    text = render(evaluation)

    def write(part: str) -> None:
        with doing(f"writing {path}"):
            Path(part).write_bytes(text.encode("utf-8", "backslashreplace"))

    write_atomically(path, write)


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
        sections=[(section, _svgs(section)) for section in shown],
        sliders=sliders.html if sliders else "",
        left_out=left_out(evaluation),
        not_asked=[
            (question, why)
            for question, why in _not_asked(evaluation).items()
            if question not in {section.key for section in shown}
        ],
        definitions=definitions(evaluation),
        facts=_facts(evaluation),
        metadata=tuple(flattened(evaluation.metadata)),
    )


def _title(names: list[str]) -> str:
    who = listed(names) if len(names) < 4 else f"these {len(names)} models"
    return f"How continuous {'is' if len(names) == 1 else 'are'} {who}?"


def _about(evaluation: Evaluation) -> str:
    """Data, images, seed and day in a line."""
    known: Mapping[str, Any] = evaluation.metadata
    parts = []
    data = known.get("data")
    if isinstance(data, Mapping):
        data = data.get("path") or data.get("root")
    if data:
        parts.append(f"Data: {data}" + (f" ({known['split']})" if known.get("split") else ""))
    n = known.get("images")
    if not isinstance(n, int):
        answers = [answer for model in evaluation.models for answer in model.answers.values()]
        tables = [table for answer in answers for table in answer.tables.values()]
        n = max(map(len, tables), default=0)
    parts.append(f"{n:,} images".replace(",", "\u202f"))
    parts += [f"{name} {known[name]}" for name in ("budget", "seed") if known.get(name) is not None]
    day = known.get("date") or known.get("time")
    if day:
        parts.append(str(day)[:10])
    return " · ".join(parts)


def _svgs(section: Section) -> list[list[Markup]]:
    """The SVGs of each group of charts, with ids that the page has once."""
    return [
        [
            Markup(unique_ids(chart.svg, f"{section.key}-{i}-{j}"))
            for j, chart in enumerate(group.charts)
        ]
        for i, group in enumerate(section.charts)
    ]


def _not_asked(evaluation: Evaluation) -> dict[str, str]:
    """Questions that no model answered, with a reason."""
    return {
        question: why for model in evaluation.models for question, why in model.left_out.items()
    }


def _facts(evaluation: Evaluation) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is known of the models: (fact, one value a model)."""
    names = dict.fromkeys(fact for model in evaluation.models for fact in model.facts)
    return tuple(
        (name.replace("_", " "), tuple(str(m.facts.get(name, "–")) for m in evaluation.models))
        for name in names
    )
