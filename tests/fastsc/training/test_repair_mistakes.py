"""A repair's mistakes and what it lacks: a line, status 2, and nothing half-written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from torch import nn

from fastsc.errors import UserError
from fastsc.run.log import RunLog
from tests.fastsc.runs import events
from tests.fastsc.training.repairs import MODEL, repair
from tests.fastsc.training.test_train_mistakes import mistake
from tests.pipelines.conftest import undecodable

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "name it with --init first"),
        (["--bn", "joint"], "name it with --init"),
        (["--init", "x", "--alpha", "0", "--ce-views", "clean"], "nothing to learn from"),
        (["--init", "x", "--label-smoothing", "0.1"], "--label-smoothing 0"),
        (["--init", "x", "--ds-target", "0.1"], "both steer alpha"),
        (["--init", "x", "--val", "none"], "--keep is of held-out images"),
        (["--init", "x", "--keep", "1"], "--keep must be below 1"),
        (["--init", "x", "--objective", "labels"], "belongs to --objective self"),
        (["--init", "x", "--sync-bn"], "--bn frozen keeps"),
        (["--init", "torchvision:resnet18", "--num-classes", "5"], "cannot be had"),
    ],
)
def test_each_mistake_is_one_line_and_writes_nothing(
    flat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    def refused(*args: object, **options: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", refused)
    words = ["repair", "--data", str(flat), "--out", str(tmp_path / "run"), *more]
    assert said in mistake(capsys, words)
    assert not (tmp_path / "run").exists()


def test_a_run_among_the_images_is_refused(
    flat: Path, init: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["repair", "--data", str(flat), "--out", str(flat / "run"), *MODEL, "--init", init]
    assert "among the images" in mistake(capsys, words)


def test_held_out_images_are_counted_once_they_are_decoded(
    flat: Path, init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = tmp_path / "val"
    val.mkdir()
    shutil.copy(next(flat.iterdir()), val)
    (val / "hole.png").write_bytes(undecodable())
    words = [*MODEL, "--init", init, "--val", str(val), "--verify", "--on-bad-image", "skip"]
    assert repair(flat, tmp_path / "run", *words) == 2
    assert "a repair needs two held-out images at least, and there is 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["jinja2", "scipy", "matplotlib"])
def test_what_the_page_needs_is_asked_for_before_training(
    flat: Path,
    init: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "run"
    assert repair(flat, out, *MODEL, "--init", init, "--epochs", "1") == 2
    assert f"the page of a repair (none with --val none) needs {package}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_log_that_cannot_be_written_at_the_end_is_told(
    flat: Path,
    init: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = RunLog.event

    def full(log: RunLog, kind: str, **fields: object) -> None:
        if kind == "kept":
            raise UserError("log.jsonl: No space left on device")
        written(log, kind, **fields)

    monkeypatch.setattr(RunLog, "event", full)
    words = [*MODEL, "--init", init, "--epochs", "1", "--keep", "0.5"]
    out = tmp_path / "run"
    assert repair(flat, out, *words) == 2
    assert "log.jsonl: No space left on device" in capsys.readouterr().err
    assert not events(out, "kept")
    monkeypatch.undo()
    assert repair(flat, out, *words, "--resume") == 0
    assert len(events(out, "kept")) == 1
