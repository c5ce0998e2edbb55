"""The command as a user types it: trials, costs, pages, and mistakes of one line."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from fastsc import reproduce
from fastsc.reproduction.grid import load_study
from fastsc.reproduction.records import write_record
from tests.fastsc.reproduction.made import made
from tests.fastsc.reproduction.test_page import whole
from tests.fastsc.reproduction.test_runner import ARMS, OPTIONS
from tests.fastsc.reproduction.test_study import grid

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.heavy]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        grid(options=OPTIONS, epochs=1, arms=ARMS, baselines=["both"], quick=["both", "default"],
             quick_seeds=[100, 101], scales={"large": {"model": "fastsc:resnet8w8"}})
    )  # fmt: skip
    return path


def words(small: Path, images: Path, tmp_path: Path, *more: str) -> list[str]:
    return [str(small), "--data", str(images), "--out", str(tmp_path / "out"), *more]


def test_a_trial_runs_from_end_to_end_and_is_marked(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet's own study, cut short: its page says that it is no result."""
    out = tmp_path / "out"
    command = ["imagenet", "--data", str(image_folder), "--out", str(out)]
    command += ["--arms", "both", "default", "--seeds", "5", "--limit-images", "9"]
    more = ["--pipeline", "cpu", "--model", "fastsc:resnet8w4", "--resolution", "32"]
    assert reproduce.main([*command, "--max-steps", "1", "--", *more, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "9 training and 9 validation images" in said
    assert "batches of 4 images, not of 256" in said
    assert "no result" in said
    page = out / "reproduction.md"
    assert "**This is a trial and no result.**" in page.read_text()
    assert "CE on both views + DS (default) (`default`) | 90 | 8 | 1 |" in whole(out / page.name)
    records = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    assert [record["trial"] for record in records] == [True] * 2
    assert {record["steps"] for record in records} == {1}
    assert {record["options"]["batch_size"] for record in records} == {4}


def test_a_dry_run_prints_the_cost_and_writes_nothing(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(words(small, image_folder, tmp_path, "--dry-run")) == 0
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := re.findall(r"[\w,.:-]+", line)) > 3
    }
    assert rows["ce"][:5] == ["1", "0", "0", "32", "0"]
    assert rows["default"][:5] == ["1", "0", "0", "0", "32"]
    assert rows["all"][:5] == ["3", "0", "0", "32", "64"]
    assert not (tmp_path / "out").exists()


def test_imagenet_in_gpu_hours(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the rates that others have published: images / rate, and twice that for a pair.

    A sample without validation images is enough to ask.
    """
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "train").symlink_to(image_folder / "train")
    command = ["imagenet", "--data", str(tmp_path / "sample"), "--out", str(tmp_path / "out")]
    assert reproduce.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "A100" in said
    assert "H100" in said
    row = next(line for line in said.splitlines() if re.match(r"\W*default\b", line))
    n = 3 * 90 * (1281167 // 256) * 256
    assert f"{n:,}" in row
    assert f"{2 * n / 2470 / 3600:.1f} h" in row


def test_a_replication_has_seeds_of_its_own_and_is_compared(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = words(small, image_folder, tmp_path, "--arms", "both", "default", "--seeds", "0", "1")
    assert reproduce.main(first) == 0
    known = str(tmp_path / "out" / "records")
    again = words(small, image_folder, tmp_path / "b", "--quick", "--known", known)
    assert reproduce.main(again) == 0
    assert "4 runs, 0 of them done already" in capsys.readouterr().out
    page = whole(tmp_path / "b" / "out" / "reproduction.md")
    section = page.partition("### A replication")[2].partition("###")[0]
    rows = [line for line in section.splitlines() if line.startswith("| both")]
    assert len(rows) == 2
    assert all("fits" in row for row in rows)
    figures = list((tmp_path / "b" / "out" / "reproduction").glob("*.svg"))
    assert {path.name for path in figures} >= {"small-plane.svg"}
    assert all(f"(reproduction/{path.name})" in page for path in figures)


def test_another_scale_is_another_setting(small: Path, image_folder: Path, tmp_path: Path) -> None:
    command = words(small, image_folder, tmp_path, "--scale", "large", "--arms", "both")
    assert reproduce.main(command) == 0
    record = json.loads((tmp_path / "out" / "records" / "both-0.json").read_text())
    assert record["options"]["model"] == "fastsc:resnet8w8"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "bth"], "--arms bth: no arm of study small; did you mean both?"),
        (["--scale", "huge"], "--scale huge: study small has large"),
        (["--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["--seeds", "-1"], "--seeds"),
        (["--known", "nowhere"], "--known nowhere: there is no such folder"),
        (["--anew", "--known", "."], "give one"),
        (["--limt-images", "3"], "unrecognized arguments: --limt-images 3"),
        (["--", "--lr", "fast"], "--lr"),
        (["--", "--seed", "3"], "--seed belongs to fastsc.reproduce itself"),
        (["--", "--resume"], "--resume belongs to fastsc.reproduce itself"),
        (["--", "--plain"], "a study says which are plain"),
        (["--", "--val-every", "1"], "--val-every: a study's runs are validated at their end"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    small: Path, image_folder: Path, tmp_path: Path, more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert reproduce.main(words(small, image_folder, tmp_path, *more)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fastsc.reproduce: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "out").exists()


def test_more_images_in_tars_are_not_all_taken(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those next to each other, too, which lie in no folder train."""
    small.write_text(small.read_text().replace("images: 32", "images: 16"))
    (tmp_path / "tars").mkdir()
    for part in ("train", "val"):
        with tarfile.open(tmp_path / "tars" / f"{part}-000.tar", "w") as tar:
            tar.add(image_folder / part, ".")
    for more in ([], ["--limit-images", "4"]):
        assert reproduce.main(words(small, tmp_path / "tars", tmp_path, *more)) == 2
        assert "tars; files are linked here, so unpack them" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_what_is_no_seed_or_no_record_is_told_before_links_are_made(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_text(small.read_text().replace("images: 32", "images: 16"))
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "x.json").write_text("{}")
    for more in (["--seeds", str(2**63)], ["--known", str(tmp_path / "known")]):
        assert reproduce.main(words(small, image_folder, tmp_path, *more)) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cifar10 --data D --out O", "unknown study 'cifar10'; did you mean cifar100?"),
        ("cifar100 --out O", "--data is missing"),
        ("cifar100 --data D", "--out is missing"),
        ("cifar100 --data nowhere --out O", "--data nowhere: there is no such folder"),
        ("cifar100 --data . --out ./O", "lies in --data, among the images"),
        ("page --known D", "page is made of the committed records"),
        ("page -- --lr 1", "page is made of the committed records"),
        ("", "STUDY"),
    ],
)
def test_what_is_missing_is_named(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D").mkdir()
    assert reproduce.main(command.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["D"]


def test_steps_behind_the_dashes_make_a_trial_too(
    small: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = words(small, image_folder, tmp_path, "--arms", "both", "--", "--max-steps", "1")
    assert reproduce.main(command) == 0
    [path] = (tmp_path / "out" / "records").glob("*.json")
    assert json.loads(path.read_text())["trial"]
    assert "no result" in (tmp_path / "out" / "reproduction.md").read_text()


def test_the_recipes_own_value_can_be_asked_for(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The grid says 1 epoch, the recipe 30; who types 30 means 30."""
    command = words(small, image_folder, tmp_path, "--dry-run", "--", "--epochs", "30")
    assert reproduce.main(command) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if re.match(r"\W*default\b", x))
    assert f"{30 * 32}" in row


def test_a_replication_is_not_compared_with_itself_or_with_other_options(
    small: Path, image_folder: Path, tmp_path: Path
) -> None:
    first = words(small, image_folder, tmp_path, "--arms", "both", "--seeds", "0", "1")
    assert reproduce.main(first) == 0
    known = str(tmp_path / "out" / "records")
    same = ["--quick", "--arms", "both", "--known", known]
    for place, more in (("b", ["--seeds", "0", "1"]), ("c", ["--", "--lr", "0.3"])):
        command = words(small, image_folder, tmp_path / place, *same, *more)
        assert reproduce.main(command) == 0
        page = whole(tmp_path / place / "out" / "reproduction.md")
        assert "### A replication" not in page


def test_held_out_images_are_what_is_validated_on(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_text(small.read_text() + "held_out: 8\n")
    for more in (["--val", str(image_folder / "val")], ["--pipeline", "ffcv"]):
        assert reproduce.main(words(small, image_folder, tmp_path, "--", *more)) == 2
        assert "validates on training images that it holds out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_folder_holds_one_study(
    small: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made(load_study("cifar100"), "both", 0)
    write_record(tmp_path / "out" / "records", record)
    assert reproduce.main(words(small, image_folder, tmp_path)) == 2
    assert "holds records of study cifar100; name another folder" in capsys.readouterr().err


def test_a_page_keeps_what_another_call_has_found(
    small: Path, image_folder: Path, tmp_path: Path
) -> None:
    for arm in ("ce", "both"):
        assert reproduce.main(words(small, image_folder, tmp_path, "--arms", arm)) == 0
    page = whole(tmp_path / "out" / "reproduction.md")
    assert "(`ce`)" in page
    assert "(`both`)" in page
