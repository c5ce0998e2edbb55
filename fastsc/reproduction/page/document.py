"""docs/reproduction.md: what came of the studies, made from the runs' records alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.evaluation.results.store import write_text
from fastsc.reproduction import STUDIES
from fastsc.reproduction.claims import Records, goals_of
from fastsc.reproduction.page.account import commands_of, failures_of, machines_of, not_run
from fastsc.reproduction.page.parts import parts_of
from fastsc.reproduction.page.tables import (
    arms_table,
    goals_table,
    method_of,
    replication_table,
    setting_of,
)
from fastsc.reproduction.page.words import Part, count, listed
from fastsc.reproduction.records import Record, read_records
from fastsc.reproduction.study import Study, load_study

PAGE = "reproduction.md"
AGAIN = "replications"


@dataclass(frozen=True)
class Written:
    """A study as the page shows it; Markdown throughout.

    Attributes:
        study: Which.
        setting: What its runs have in common, in sentences.
        arms, goals, replication, replication_goals: Tables; empty where there is nothing to say.
        goals_words, replication_words: What they are.
        parts: The claims, with figures.
        commands: How to run it again.
    """

    study: Study
    setting: str
    arms: str
    goals: str
    goals_words: str
    replication: str
    replication_goals: str
    replication_words: str
    parts: tuple[Part, ...]
    commands: str


def write_docs(records: Path, docs: Path) -> Path:
    """DOCS/reproduction.md and its figures, from the records in RECORDS/STUDY/*.json.

    Those of a replication lie in AGAIN beside RECORDS, where no sweep takes them for done.

    Raises:
        UserError: There are no records, or the disk does not take the page.
    """
    found = {name: _results(read_records([records / name])) for name in STUDIES}
    studies = [(load_study(name), runs) for name, runs in found.items() if runs]
    if not studies:
        raise UserError(f"{records}: there are no records in it")
    missing = [load_study(name) for name, runs in found.items() if not runs]
    again = {
        study.name: (_again(study, records.parent / AGAIN / study.name), runs)
        for study, runs in studies
    }
    return _write(docs, studies, missing, {"docs": True, "command": "", "trial": False}, again)


def _again(study: Study, folder: Path) -> Records:
    """A replication's records: of the study's quick arms, with the seeds of the replication."""
    found = _results(read_records([folder]))
    return {
        (arm, seed): record
        for (arm, seed), record in found.items()
        if arm in study.quick and seed in study.quick_seeds
    }


def _results(records: Records) -> Records:
    """Without trials, which are none."""
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
    words = ["python", "-m", "fastsc.reproduce", *sys.argv[1:]]
    more = {"docs": False, "command": shlex.join(words), "trial": trial}
    return _write(out, [(study, runs)], [], more, {study.name: (runs, known)})


def _write(
    folder: Path,
    studies: Sequence[tuple[Study, Records]],
    missing: Sequence[Study],
    more: Mapping[str, Any],
    compared: Mapping[str, tuple[Records, Records]],
) -> Path:
    """compared: by study, runs with other seeds and those that they repeat."""
    needed("jinja2", "the page")
    import jinja2

    figures: dict[str, str] = {}
    written = [
        _written(study, runs, compared[study.name], figures) for study, runs in studies if runs
    ]
    of_docs = [(study, compared[study.name][0]) for study, _ in studies] if more["docs"] else []
    text = (
        jinja2.Environment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )  # Markdown, of our own records
        .from_string(
            (resources.files("fastsc.reproduction.page") / "page.md.j2").read_text("utf-8")
        )
        .render(
            studies=written,
            failures=failures_of(studies),
            not_run=not_run(studies, missing) if more["docs"] else "",
            machines=machines_of([*studies, *of_docs]),
            **more,
        )
    )
    for study, _ in studies:  # of an earlier page, with other parts
        for path in (folder / "reproduction").glob(f"{study.name}-*.svg"):
            if path.name not in figures:
                path.unlink()
    for name, svg in figures.items():
        path = folder / "reproduction" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, svg)
    write_text(folder / PAGE, text)
    return folder / PAGE


def _written(
    study: Study, runs: Records, compared: tuple[Records, Records], figures: dict[str, str]
) -> Written:
    """One study's part of the page; its figures' texts go into `figures` by their file names."""
    goals = goals_of(study, runs)
    n = sorted({goal.found.n for goal in goals})
    return Written(
        study=study,
        setting=setting_of(study, runs),
        arms=arms_table(study, runs),
        goals=goals_table(goals),
        goals_words=(
            f"This project's goals for `{study.default}`, with what was found over "
            f"{listed([str(k) for k in n[:-1]] + [count(n[-1], 'seed')])}. `{study.default}` is "
            f"{method_of(study, study.default)}. {study.chosen}".rstrip()
            if goals
            else ""
        ),
        replication=replication_table(study, *compared),
        replication_words=(
            "The quick setting: a few arms once more, with other seeds than the committed ones. A "
            "figure fits if the mean lies in the interval where the mean of so many further seeds "
            "falls 95 times of 100, each figure by itself."
        ),
        # On the page of a replication alone they are the goals themselves.
        replication_goals="" if compared[0] is runs else goals_table(goals_of(study, compared[0])),
        parts=tuple(parts_of(study, runs, figures)),
        commands=commands_of(study, runs),
    )
