"""docs/reproduction.md: what came of the studies, made from the runs' records alone."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from glob import escape
from inspect import isfunction
from pathlib import Path
from urllib.parse import quote

from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.evaluation.results.store import write_text
from fastsc.reproduction import STUDIES
from fastsc.reproduction.claims import CLAIMS, Records
from fastsc.reproduction.grid import load_study
from fastsc.reproduction.page import words
from fastsc.reproduction.page.drawn import PICTURES, headline
from fastsc.reproduction.page.results import Results
from fastsc.reproduction.records import Record, read_records, run_name
from fastsc.reproduction.runner import image_words
from fastsc.reproduction.study import Study

PAGE, DETAILS = "reproduction.md", "reproduction-details.md"
COMMANDS = "reproduction-commands.md"
AGAIN = "replications"


def write_docs(records: Path, docs: Path) -> Path:
    """DOCS/reproduction.md, its commands and its figures, from RECORDS/STUDY/*.json.

    Those of a replication lie in AGAIN next to RECORDS, where no sweep takes them for done.

    Raises:
        UserError: There are no records, or the disk does not take the page.
    """
    studies = []
    for study in map(load_study, STUDIES):
        runs = _results(study, records)
        again = _results(study, records.parent / AGAIN)
        further = {
            (arm, seed): record
            for (arm, seed), record in again.items()
            if arm in study.quick and seed in study.quick_seeds
        }
        studies.append(Results(study, runs, further, runs))
    if not any(s.runs for s in studies):
        raise UserError(f"{records}: there are no records in it")
    # Those that have no records yet come last.
    return _write(docs, sorted(studies, key=lambda s: not s.runs), docs=True)


def _results(study: Study, folder: Path) -> Records:
    """FOLDER/STUDY/*.json, without trials, which are no results.

    Raises:
        UserError: One is of another study, or of an arm that the study has not.
    """
    records = read_records([folder / study.name])
    for (arm, seed), record in records.items():
        if record.study != study.name or arm not in study.arms:
            raise UserError(
                f"{folder / study.name}: the record of {run_name(arm, seed)} is of study "
                f"{record.study}, or of an arm that {study.name} has no more; remove it"
            )
    return {run: record for run, record in records.items() if not record.trial}


def write_page(
    study: Study,
    records: Sequence[Record],
    out: Path,
    known: Mapping[tuple[str, int], Record],
    *,
    trial: bool = False,
) -> Path:
    """OUT/reproduction.md of one study's records.

    known: records to compare these with, which are of other seeds.
    """
    runs = {(record.arm, record.seed): record for record in records}
    command = shlex.join(["python", "-m", "fastsc.reproduce", *sys.argv[1:]])
    return _write(out, [Results(study, runs, runs, known)], command=command, trial=trial)


def _named(study: Study) -> str:
    """As one types it: a study that does not ship is its file."""
    return study.name if study.name in STUDIES else shlex.quote(f"{study.name}.yaml")


def _write(folder: Path, studies: Sequence[Results], **more: object) -> Path:
    """The page, its commands and its figures."""
    needed("jinja2", "the page")
    import jinja2

    figures: dict[str, str] = {}

    def picture(s: Results, name: str) -> str:
        """A figure in Markdown; its SVG goes into `figures`."""
        drawn = PICTURES[name](s) if name in PICTURES else None
        if drawn is None:
            return ""
        figures[f"{s.study.name}-{name}.svg"] = drawn.svg
        return f"![{drawn.title}](reproduction/{quote(f'{s.study.name}-{name}.svg')})"

    loader = jinja2.PackageLoader("fastsc.reproduction", "page")
    templates = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False, loader=loader,
    )  # Markdown, of our own records  # fmt: skip
    templates.filters.update({name: f for name, f in vars(words).items() if isfunction(f)})
    templates.globals.update(
        claims=CLAIMS, picture=picture, headline=headline, all=studies, image_words=image_words,
        named=_named,
        studies=[s for s in studies if s.runs],
        decided=[s for s in studies if s.runs and s.study.default],
        **{"docs": False, "trial": False, **more},
    )  # fmt: skip
    names = (PAGE, DETAILS, COMMANDS)
    texts = {name: templates.get_template(f"{name}.j2").render() for name in names}
    for name, text in texts.items():
        write_text(folder / name, re.sub(r"\n{3,}|\n+(?=##)", "\n\n", text).strip() + "\n")
    for s in studies:  # of an earlier page, with other parts
        for path in (folder / "reproduction").glob(f"{escape(s.study.name)}-*.svg"):
            if path.name not in figures:
                path.unlink()
    for name, svg in figures.items():
        path = folder / "reproduction" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, svg)
    return folder / PAGE
