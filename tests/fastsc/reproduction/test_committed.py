"""The committed page is what the committed records make, and these are of the grid as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastsc.config import MethodConfig, TrainConfig
from fastsc.config.rules import option
from fastsc.reproduction import STUDIES
from fastsc.reproduction.claims import CLAIMS
from fastsc.reproduction.command import DOCS, RECORDS
from fastsc.reproduction.grid import load_study
from fastsc.reproduction.page.document import AGAIN, COMMANDS, DETAILS, PAGE, write_docs
from fastsc.reproduction.records import Record, all_records, key_of, read_records, science
from tests.fastsc.reproduction.test_page import IMAGE, texts

pytestmark = pytest.mark.heavy

# Hashes of the training and validation images that `fastsc.prepare colormnist` makes; the CIFAR-100
# of the other records nothing here can make.
IMAGES = {"colormnist": ("fcdb267bdbb69fe7", "e4fa6c1c51e1f9a9")}


def test_the_committed_page_is_what_the_committed_records_make(tmp_path: Path) -> None:
    write_docs(RECORDS, tmp_path)
    pages = [tmp_path / name for name in (PAGE, DETAILS, COMMANDS)]
    for path in [*pages, *tmp_path.glob("reproduction/*.svg")]:
        committed = DOCS / path.relative_to(tmp_path)
        message = f"{committed} is not of these records: run `make reproduction`"
        if path.suffix == ".md":
            assert committed.read_text() == path.read_text(), message
        else:  # another matplotlib may put a line a hair's breadth further
            assert texts(committed.read_text()) == texts(path.read_text()), message
    made_now = {path.name for path in tmp_path.glob("reproduction/*")}
    assert {path.name for path in DOCS.glob("reproduction/*")} == made_now


def test_the_committed_page_shows_six_figures_that_are_there() -> None:
    shown = IMAGE.findall((DOCS / PAGE).read_text()) + IMAGE.findall((DOCS / DETAILS).read_text())
    assert len(shown) >= 6
    for alt, path in shown:
        assert len(alt) > 20
        assert (DOCS / path).stat().st_size < 60_000
        assert not path.startswith(("/", "http", ".."))


@pytest.mark.parametrize("name", STUDIES)
def test_committed_records_are_of_the_grid_as_it_is(name: str) -> None:
    """A record whose options are no longer the arm's would be shown under a wrong name."""
    for record, config in committed(name):
        assert record.study == name
        message = "an option that is new, and science, needs since=, or its default's key is new"
        assert json_of(record.options) == json_of(science(config)), message
        if name in IMAGES:
            assert record.key == key_of(science(config), *IMAGES[name])


def committed(name: str) -> Iterator[tuple[Record, TrainConfig]]:
    """A study's records of whole runs, each with the training that its arm and seed mean today."""
    study = load_study(name)
    for record in all_records([RECORDS / name, DOCS / AGAIN / name]):
        if not record.trial:
            yield record, study.config(study.arms[record.arm], Path("DIR"), record.seed)


def json_of(options: Mapping[str, Any]) -> str:
    """What of a key is the options': 1 and 1.0 are two keys."""
    return json.dumps(dict(options), sort_keys=True)


@dataclass(frozen=True)
class LaterMethod(MethodConfig):
    """As of a later version, with an option that no record knows."""

    pretended: float = option(0.5, above=0, high=1, since="9.9")


@dataclass(frozen=True)
class LaterConfig(TrainConfig):
    method: MethodConfig = field(default_factory=LaterMethod)


@pytest.mark.parametrize("name", STUDIES)
def test_a_new_option_orphans_no_record(name: str) -> None:
    for record, config in committed(name):
        later = LaterConfig().replace(**config.flat())
        assert json_of(science(later)) == json_of(record.options)
        other = science(later.replace(pretended=0.7))
        assert other == {**record.options, "pretended": 0.7}


@pytest.mark.parametrize("name", STUDIES)
def test_a_replication_is_of_the_quick_setting(name: str) -> None:
    """The page leaves other records out, and would do so without a word."""
    study = load_study(name)
    for arm, seed in read_records([DOCS / AGAIN / name]):
        assert arm in study.quick
        assert seed in study.quick_seeds


def test_every_claim_is_measured_somewhere() -> None:
    """A figure that an evaluation calls otherwise would be missing without a word."""
    known = {
        name
        for study in STUDIES
        for record in read_records([RECORDS / study]).values()
        for name in record.figures
    }
    wanted = {measure.key for measures in CLAIMS.values() for measure in measures}
    assert {key for key in wanted if not key.startswith("val/")} <= known
