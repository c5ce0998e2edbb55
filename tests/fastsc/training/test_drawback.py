"""The way back to the weights of before: its points, the farthest that holds, and whole repairs."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.errors import UserError
from fastsc.run import checkpoint
from fastsc.run.validation import Validation
from fastsc.training.drawback import HALVINGS, between, farthest, keeps
from fastsc.training.validate import validate
from tests.fastsc.runs import events, same_weights, weights
from tests.fastsc.training.repairs import MODEL, repair


@pytest.mark.parametrize("edge", [0.0, 0.01, 1 / 32, 0.3, 0.5, 0.97, 1.0])
def test_the_farthest_share_that_holds_is_found_to_a_part_in_32(edge: float) -> None:
    asked = list[float]()

    def holds(share: float) -> bool:
        asked.append(share)
        return share <= edge

    share = farthest(holds)
    assert share <= edge < share + 2**-HALVINGS or share == edge == 1
    assert asked[0] == 1
    assert len(set(asked)) == len(asked) <= 1 + HALVINGS


def test_the_end_that_holds_asks_once() -> None:
    asked = list[float]()
    assert farthest(lambda share: not asked.append(share)) == 1  # type: ignore[func-returns-value]
    assert asked == [1.0]


def test_the_points_lie_on_the_line_and_its_ends_are_exact() -> None:
    before = {"w": torch.tensor([0.1, -3.0, 1e-30]), "n": torch.tensor(4)}
    after = {"w": torch.tensor([0.3, 1e8, float("inf")]), "n": torch.tensor(9)}
    for share, end in ((0.0, before), (1.0, after)):
        assert all(torch.equal(between(before, after, share)[name], end[name]) for name in end)
    middle = between(before, after, 0.25)
    assert middle["w"][:2].tolist() == pytest.approx([0.15, 0.25e8 - 2.25])
    assert middle["w"].dtype == torch.float32
    assert middle["n"] == 9


def test_what_keeps_a_bound() -> None:
    assert keeps(0.98, 0.2, 0.98)
    assert not keeps(0.97, 0.2, 0.98)
    assert not keeps(1.0, float("nan"), 0.98)


def test_what_is_no_weight_stays() -> None:
    """A mask of infinities, complex weights, and a state that is no tensor."""
    mask = torch.tensor([0.0, -float("inf")])
    before = {"mask": mask, "c": torch.tensor([1 + 1j]), "_extra_state": {"a": 1}}
    after = {"mask": mask.clone(), "c": torch.tensor([3 + 5j]), "_extra_state": {"a": 2}}
    middle = between(before, after, 0.5)
    assert torch.equal(middle["mask"], mask)
    assert middle["c"].tolist() == [2 + 3j]
    assert middle["_extra_state"] == {"a": 2}


# --- repairs whose end breaks the bound ----------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.usefixtures("forked", "no_page")
def test_an_end_that_breaks_the_bound_is_drawn_back(flat: Path, init: str, tmp_path: Path) -> None:
    """At a rate that spoils the network, what is exported lies on the line to what it was."""
    out = tmp_path / "run"
    more = ["--keep", "0.3", "--lr", "3", "--epochs", "4", "--schedule", "constant"]
    assert repair(flat, out, *MODEL, "--init", init, *more) == 0
    assert events(out, "epoch")[-1]["val"]["top1"] < 0.3
    (told,), (kept,) = events(out, "repair"), events(out, "kept")
    assert told["holds"] is True
    assert told["agreement"] >= 0.3
    share = kept["share"]
    assert 0 < share < 1
    assert (kept["holds"], kept["agreement"]) == (True, told["agreement"])
    end = checkpoint.load(out / "checkpoints" / "step-00000012.pt")["model"]
    before, _ = checkpoint.load_safetensors(out / "before.safetensors")
    for name, now in weights(out).items():
        line = before[name] + share * (end[name] - before[name])
        torch.testing.assert_close(now, line.to(now.dtype))
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "weights.safetensors").unlink()  # broken off before the export: without a validation
    assert repair(flat, again, *MODEL, "--init", init, *more, "--resume") == 0
    assert same_weights(out, again)


@pytest.mark.heavy
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("lr", "holds"), [("3", True), ("100", False)])
def test_a_page_that_fails_leaves_the_last_step_s_checkpoint(
    flat: Path, init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: str, holds: bool
) -> None:
    """What is exported is not what training goes on from, nor what a resume asks again."""

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    out, end = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000006.pt"
    more = ["--init", init, "--keep", "0.9", "--lr", lr, "--epochs", "2", "--alpha", "100"]
    monkeypatch.setattr("fastsc.train.conclude", full)
    assert repair(flat, out, *MODEL, *more) == 2
    (first,) = events(out, "kept")
    assert (first["share"] < 1, first["holds"]) == (True, holds)
    before, _ = checkpoint.load_safetensors(out / "before.safetensors")
    exported, last = weights(out), checkpoint.load(end)["model"]
    assert not all(torch.equal(last[name], exported[name]) for name in last)
    assert all(torch.equal(before[name], exported[name]) for name in last) == (not holds)
    monkeypatch.setattr("fastsc.train.conclude", lambda *_: None)
    assert repair(flat, out, *MODEL, *more, "--resume") == 0
    assert events(out, "kept")[1] == first
    assert all(torch.equal(exported[name], value) for name, value in weights(out).items())


@pytest.mark.heavy
@pytest.mark.usefixtures("forked", "no_evaluation")
def test_a_signal_ends_the_drawing_back_and_a_resume_does_it_again(
    flat: Path, init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*MODEL, "--init", init, "--keep", "0.9", "--lr", "3", "--epochs", "2", "--alpha", "100"]
    assert repair(flat, tmp_path / "whole", *more) == 0
    validations = []

    def signalled(*args: Any, **options: Any) -> Validation | None:
        validations.append(args)
        if len(validations) == 3:  # two epochs', then the first on the way back
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args, **options)

    monkeypatch.setattr("fastsc.training.fit.validate", signalled)
    assert repair(flat, tmp_path / "parts", *more) == 75
    assert len(validations) == 3
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.setattr("fastsc.train.conclude", lambda *_: None)
    assert repair(flat, tmp_path / "parts", *more, "--resume") == 0
    assert events(tmp_path / "parts", "kept") == events(tmp_path / "whole", "kept")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
