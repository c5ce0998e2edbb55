"""The page: made of records alone, and the committed one is what its records make."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastsc import reproduce
from fastsc.errors import UserError
from fastsc.reproduction import STUDIES, command
from fastsc.reproduction.grid import load_study, parse_study
from fastsc.reproduction.page import document
from fastsc.reproduction.page.document import write_docs, write_page
from fastsc.reproduction.records import write_record
from tests.fastsc.reproduction.made import made, runs
from tests.fastsc.reproduction.test_study import GRID, grid

pytestmark = pytest.mark.heavy

SOURCES = Path(document.__file__).parent
IMAGE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
STUDY = parse_study(
    grid(groups={"alpha": ["both", "default", "strong"], "target": ["t"],
                 "collapse": ["both", "l2"]},
         arms={**GRID["arms"],
               "strong": {"label": "strong", "seeds": 2, "options": {"alpha": 30}},
               "t": {"label": "t", "seeds": 1, "options": {"ds_target": 0.1}},
               "l2": {"label": "l2 at 1", "seeds": 1, "options": {"ds": "l2", "alpha": 1}}}),
    "small",
)  # fmt: skip
NORM = "gradients/gradient_norm"
FOUND = runs(STUDY, {
    "ce": {"top1": [0.5111, 0.5222], "ds_relative": [0.3111, 0.3222], NORM: [1.0, 1.1]},
    "ce-2e": {"top1": [0.5333, 0.5444], "ds_relative": [0.3333, 0.3444], NORM: [2.0, 2.1]},
    "both": {"top1": [0.5555, 0.5666], "ds_relative": [0.2111, 0.2222], NORM: [1.0, 1.1]},
    "default": {"top1": [0.5777, 0.5888], "ds_relative": [0.1111, 0.1222], NORM: [0.5, 0.55]},
    "strong": {"top1": [0.4777, 0.4888], "ds_relative": [0.0911, 0.0922]},
    "t": {"top1": [0.4999], "ds_relative": [0.106]},
    "l2": {"top1": [0.0123], "ds_relative": [0.7777]},
})  # fmt: skip


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter()
            if node.tag.endswith(("text", "title"))]  # fmt: skip


def whole(page: Path) -> str:
    """The page with every figure and its commands."""
    names = (page.name, document.DETAILS, document.COMMANDS)
    return "".join(page.with_name(name).read_text() for name in names)


def page(folder: Path, found=FOUND, known=None) -> str:
    return whole(write_page(STUDY, list(found.values()), folder, known or {}))


def test_no_result_is_typed_into_the_prose() -> None:
    """Decimal fractions in the template and in the code's words are none but names of papers."""
    strings = [path.read_text() for path in SOURCES.glob("*.j2")]
    assert strings
    strings += [text for study in map(load_study, STUDIES) for text in (study.reason, study.chosen)]
    for path in SOURCES.glob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        }
        strings += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value not in docs
        ]
    for text in strings:
        assert not re.findall(r"(?<!arXiv )(?<!/abs/)\b\d+\.\d+", text), text


@pytest.mark.usefixtures("undrawn")
def test_every_figure_follows_the_records(tmp_path: Path) -> None:
    """Other records, other numbers: nothing but the setting's stays."""
    other = {
        key: made(STUDY, *key, top1=r.val["top1"] / 2, ds_relative=r.val["ds_relative"] / 3,
                  figures={name: value / 5 for name, value in r.figures.items()})
        for key, r in FOUND.items()
    }  # fmt: skip
    first, second = page(tmp_path / "a"), page(tmp_path / "b", other)
    rows = [
        [re.findall(r"\d\.\d{3}|\d\d\.\d(?=[ |])", line) for line in text.splitlines()
         if line.startswith("| ") and "torch" not in line]
        for text in (first, second)
    ]  # fmt: skip
    pairs = [(a, b) for a, b in zip(*rows, strict=True) if a or b]
    assert len(pairs) > 10
    for a, b in pairs:
        assert a != b


@pytest.mark.usefixtures("undrawn")
def test_what_is_said_of_known_records(tmp_path: Path) -> None:
    text = page(tmp_path)
    # 1,000 steps of 64 images, each in two views; t(0.975, 1) · 0.55 points
    assert "| default (`default`) | 4 | 128,000 | 2 | 58.3 ± 7.1 |" in text
    assert "| CE, 2E (`ce-2e`) | 8 | 64,000 | 2 | 53.9 ± 7.1 |" in text
    assert "×0.54" in text  # of both: √(0.1111/0.2111 · 0.1222/0.2222)
    row = next(line for line in text.splitlines() if line.startswith("| input gradient, norm ↓"))
    cells = row.strip("| ").split(" | ")
    assert cells[1] == "0.525 ± 0.318"
    assert cells[2:7:2] == ["1.050 ± 0.635", "2.050 ± 0.635", "1.050 ± 0.635"]  # theirs
    assert cells[3].startswith("×0.50 (")
    assert cells[5].startswith("×0.26 (")
    assert "| `t`, seed 0 | 0.1 | 30 | 30 to 30 | 30 | 0.106 | +6 % | 50.0 |" in text
    assert "l2 at 1" in text.partition("### Collapse")[2]
    assert "1 of 1 runs end within 10 % of the ds_relative" in text
    assert {path for _, path in IMAGE.findall(text)} == {
        f"reproduction/{path.name}" for path in tmp_path.glob("reproduction/*.svg")
    }


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_run_is_listed_with_its_cost(tmp_path: Path) -> None:
    """Of the committed grids alone: a page of somebody's own runs does not know what they want."""
    assert "## What was not run" not in page(tmp_path)
    study = load_study("colormnist")
    for arm in study.arms:
        for seed in range(study.arms[arm].seeds - (arm == "ce-2e")):
            write_record(tmp_path / "runs" / "colormnist", made(study, arm, seed))
    write_docs(tmp_path / "runs", tmp_path / "docs")
    text = whole(tmp_path / "docs" / "reproduction.md")
    left = text.partition("## What was not run")[2].partition("CIFAR-100, trainings")[0]
    n = 16 * (3600 // 64) * 64  # 2E epochs of whole batches
    assert f"| `ce-2e` | 1 | {n:,} | – | {n / 640 / 60:.0f} min |" in left
    assert "| `ce` |" not in left
    assert "ImageNet, trainings that are left" in text


def test_the_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    page(tmp_path / "a")
    page(tmp_path / "b", dict(reversed(FOUND.items())))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_run_alone_makes_a_page(tmp_path: Path) -> None:
    text = page(tmp_path, {("both", 0): FOUND["both", 0]})
    assert "| both (`both`) | 4 | 128,000 | 1 | 55.5 | 50.5 | 0.211 |" in text
    assert "nan" not in text.lower()


@pytest.mark.usefixtures("undrawn")
def test_what_is_undecided_says_how_many_seeds_would_decide(tmp_path: Path) -> None:
    text = page(tmp_path).partition("Neither shown nor refuted")[2].partition("##")[0]
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines
    assert all(re.search(r"; \d+ seeds would decide\.$", line) for line in lines), lines


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    """As one types it; and no link ends at a blank."""
    study = parse_study(grid(), "my study")
    found = [record for run, record in FOUND.items() if run[0] in study.arms]
    text = whole(write_page(study, found, tmp_path, {}))
    assert "python -m fastsc.reproduce 'my study.yaml' --data DIR --out OUT " in text
    assert "(reproduction/my%20study-plane.svg)" in text


def test_what_has_no_ratio_or_no_end_of_one_makes_a_page(tmp_path: Path) -> None:
    """A perturbation of strength 0 moves nothing; and two seeds can be any distance apart."""
    for values, said in (([0.0, 0.0], "| 2 | – | undecided |"), ([1e-300, 1.0], "(0.00 to inf)")):
        found = {
            key: made(STUDY, *key, ds_relative=values[key[1]] if key[0] == "default" else 0.5)
            for key in FOUND
        }
        text = page(tmp_path, found)
        assert said in text
        assert "nan" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_collapse_is_named(tmp_path: Path) -> None:
    fallen = made(STUDY, "l2", 0, top1=0.01)
    fallen = replace(
        fallen, curve={**fallen.curve, "effective_rank": [9.0, 0.1], "step": [1.0, 2.0]}
    )
    text = page(tmp_path, {**FOUND, ("l2", 0): fallen})
    assert "| l2 at 1 (`l2`) | 4 | 128,000 | 1 | 1.0 | -4.0 | collapsed |".replace("-", "−") in text
    assert "- Small: l2 at 1, seed 0: top-1 1.0 %." in text.partition("## What does not hold")[2]
    assert "![Features collapse with l2 at 1]" in text
    assert "![No arm’s features collapse]" in page(tmp_path)


def test_a_figure_has_all_its_arms(tmp_path: Path) -> None:
    """There are fewer marks, and the arm that the title is about is the last one."""
    more = {f"b{i}": {"label": f"B{i}", "seeds": 2, "options": {"alpha": 0}} for i in range(5)}
    grown = {"arms": {**GRID["arms"], **more}, "baselines": ["ce-2e", "both", *more]}
    study = parse_study(grid(**grown, groups={"collapse": list(grown["arms"])}), "small")
    figures = {"continuity/ds_relative/hue/0.1": 0.3}
    found = [made(study, arm, 0, figures=figures) for arm in study.arms]
    write_page(study, found, tmp_path, {})
    for name, n in (("continuity", " (n = 1)"), ("collapse", "")):
        words = texts((tmp_path / "reproduction" / f"small-{name}.svg").read_text())
        assert {f"{arm.label}{n}" for arm in study.arms.values()} <= {*words}


@pytest.mark.usefixtures("undrawn")
def test_the_default_is_named_with_its_reason(tmp_path: Path) -> None:
    study = parse_study(grid(reason="Because."), "small")
    found = [record for run, record in FOUND.items() if run[0] in study.arms]
    text = whole(write_page(study, found, tmp_path, {}))
    assert "`default` is `--ds cosine --ds-at features --alpha 30`, which rises" in text
    assert "Because." in text


def test_an_arm_without_common_seeds_is_not_collapsed(tmp_path: Path) -> None:
    groups = {"longer": ["default", "weak"]}
    weak = {"label": "weak", "seeds": 2, "options": {"alpha": 3}}
    study = parse_study(grid(groups=groups, arms={**GRID["arms"], "weak": weak}), "small")
    found = [made(study, "default", 0), made(study, "weak", 5)]
    text = whole(write_page(study, found, tmp_path, {}))
    assert "### In a longer training" in text
    assert "collapsed" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_a_default_sets_its_arms_side_by_side(tmp_path: Path) -> None:
    alone = {"default": None, "baselines": None, "augmentation": None, "reference": "both"}
    strong = {"label": "strong", "seeds": 2, "options": {"alpha": 300}}
    l2 = {"label": "l2 at 1", "seeds": 1, "options": {"ds": "l2", "alpha": 1}}
    target = {"label": "t", "seeds": 1, "options": {"ds_target": 0.1}}
    groups = {"alpha": ["both", "default", "strong"], "depth": ["ce", "ce-2e"], "target": ["t"]}
    arms = {**GRID["arms"], "strong": strong, "l2": l2, "t": target}
    text = grid(**alone, reason="To see.", chosen="By the rule.", groups=groups, arms=arms)
    study = parse_study(text, "small")
    front = write_page(study, list(FOUND.values()), tmp_path, {})
    text = whole(front)
    section = text.partition("To see. Each arm is compared with the first row:")[2]
    table = section.partition("By the rule.")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    names = [re.findall(r"`([\w-]+)`", row)[0] for row in rows[1:]]
    assert names == ["both", "default", "strong", "l2", "t"]  # another network is set aside
    assert "×0.54" in rows[2]
    for part in ("DS under each perturbation in another", "Accuracy and DS over", "The constraint"):
        assert f"### {part}" in text
    for part in ("All claims", "Accuracy\n", "A replication"):
        assert f"### {part}" not in text
    assert "No arm is tested here: they stand side by side" in front.read_text()
    assert "goals for" not in text


@pytest.mark.usefixtures("undrawn")
def test_other_arms_have_claims_too(tmp_path: Path) -> None:
    study = parse_study(grid(claimed={"both": ["ce"]}), "small")
    found = [record for run, record in FOUND.items() if run[0] in study.arms]
    text = whole(write_page(study, found, tmp_path, {}))
    section = text.partition("### All claims for: both")[2].partition("##")[0]
    assert "| top-1 ↑ | 56.1 ± 7.1 | 51.7 ± 7.1 | +4.4" in section


@pytest.mark.usefixtures("undrawn")
def test_a_further_arm_that_collapsed_keeps_its_columns(tmp_path: Path) -> None:
    """Its top-1 must not stand under ds_relative, which it has not."""
    study = parse_study(grid(claimed={"ce-2e": ["both"]}), "small")
    fallen = {**FOUND["ce-2e", 0].curve, "effective_rank": [20.0] * 19 + [1.0]}
    found = [
        replace(record, curve=fallen) if arm == "ce-2e" else record
        for (arm, _), record in FOUND.items()
        if arm in study.arms
    ]
    text = write_page(study, found, tmp_path, {}).read_text()
    assert "| CE, 2E | both | – | −2.2 (−2.2 to −2.2 at 90 %): does not hold |" in text


def test_changed_code_is_said_to_be(tmp_path: Path) -> None:
    commit = f"{'a' * 40}-dirty"
    record = made(STUDY, "both", 0)
    record = replace(record, made={**record.made, "commit": commit})
    assert f"| `{'a' * 10}`, with changes |" in page(tmp_path, {("both", 0): record})


@pytest.mark.usefixtures("undrawn")
def test_a_replication_that_does_not_fit_says_so(tmp_path: Path) -> None:
    known = {
        ("both", seed): made(STUDY, "both", seed, top1=0.70 + seed / 1000) for seed in range(5)
    }
    text = page(tmp_path, known=known)
    row = next(line for line in text.splitlines() if line.startswith("| both, top1"))
    assert row.endswith("| does not fit |")


@pytest.mark.usefixtures("undrawn")
def test_a_committed_replication_is_shown_and_is_no_seed_more(tmp_path: Path) -> None:
    study, text = load_study("colormnist"), ""
    for seeds, folder in ((range(3), "runs"), (study.quick_seeds, "replications")):
        for arm in study.quick:
            for seed in seeds:
                write_record(tmp_path / folder / "colormnist", made(study, arm, seed))
        write_docs(tmp_path / "runs", tmp_path / "docs")
        before, text = text, whole(tmp_path / "docs" / "reproduction.md")
    assert "### A replication" not in before
    section = text.partition("### A replication")[2].partition("###")[0]
    rows = [
        line for line in section.splitlines() if line.endswith(("| fits |", "| does not fit |"))
    ]
    assert len(rows) == 2 * len(study.quick)
    label = study.arms["default"].label
    first = next(line for line in text.splitlines() if line.startswith(f"| {label} (`default`)"))
    assert first in before


@pytest.mark.usefixtures("undrawn")
def test_another_scale_has_its_cost_by_a_published_rate(tmp_path: Path) -> None:
    write_record(tmp_path / "runs" / "cifar100", made(load_study("cifar100"), "both", 100))
    write_docs(tmp_path / "runs", tmp_path / "docs")
    text = whole(tmp_path / "docs" / "reproduction.md")
    section = text.partition("with `--scale gpu`")[2].partition("##")[0]
    pairs = 25 * (50_000 // 128) * 128
    assert f"| `both` | 1 | – | {pairs:,} | {2 * pairs / 4565 / 60:.0f} min |" in section
    assert f"| `front-sq` | 1 | – | {pairs:,} | {2 * pairs / 4565 / 60:.0f} min |" in section


@pytest.mark.parametrize("other", [{"study": "colormnist"}, {"arm": "gone"}])
def test_a_record_of_another_study_or_arm_is_named(other: dict[str, str], tmp_path: Path) -> None:
    record = made(load_study("cifar100"), "both", 0)
    write_record(tmp_path / "runs" / "cifar100", replace(record, **other))
    with pytest.raises(UserError, match=rf"record of {other.get('arm', 'both')}-0 is of study"):
        write_docs(tmp_path / "runs", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


@pytest.mark.usefixtures("undrawn")
def test_what_older_records_do_not_say_is_no_figure(tmp_path: Path) -> None:
    record = made(STUDY, "t", 0)
    without = {key: value for key, value in record.options.items() if key != "ds_target"}
    unknown = [None] * len(record.curve["alpha"])
    commitless = {key: value for key, value in record.made.items() if key != "commit"}
    for changes in (
        {"options": without}, {"options": {**without, "ds_target": None}}, {"made": commitless},
        {"curve": {**record.curve, "alpha": unknown}},
    ):  # fmt: skip
        text = page(tmp_path, {**FOUND, ("t", 0): replace(record, **changes)})
        assert ("| `t`, seed 0 |" in text) is ("made" in changes)


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = page(tmp_path)
    monkeypatch.setattr(document, "COMMANDS", "nowhere.md")
    with pytest.raises(Exception, match=r"nowhere\.md\.j2"):
        write_page(STUDY, list(FOUND.values())[:3], tmp_path, {})
    monkeypatch.undo()
    assert whole(tmp_path / document.PAGE) == before


def test_without_records_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no records in it"):
        write_docs(tmp_path, tmp_path / "docs")


@pytest.mark.usefixtures("undrawn")
def test_the_command_makes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study("colormnist")
    for arm in ("both", "default"):
        write_record(tmp_path / "runs" / "colormnist", made(study, arm, 0))
    monkeypatch.setattr(command, "RECORDS", tmp_path / "runs")
    assert reproduce.main(["page", "--out", str(tmp_path / "docs")]) == 0
    assert "reproduction.md" in capsys.readouterr().out
    text = whole(tmp_path / "docs" / "reproduction.md")
    assert "## Color MNIST" in text
    assert "CIFAR-100, trainings that are left" in text  # of which there is no record
