"""A loss that is not finite: the run stops and names the images, or leaves the step out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import UserError, scan
from fastsc.pipelines.keyed import order
from fastsc.run import checkpoint
from fastsc.training.figures import Measured
from fastsc.training.loop import train
from fastsc.training.nonfinite import LossWatch
from fastsc.training.state import Training
from fastsc.training.step import Step
from tests.fastsc.runs import events, run, same_weights, weights

pytestmark = pytest.mark.heavy

# Batch norm, whose running statistics a bad batch must not touch, and an average of the weights.
SMALL = ["--model", "fastsc:resnet8w4", "--val", "none", "--ema", "0.9", "--lr", "0.05"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps, counted from 1, whose batch holds an infinite pixel; the test fills the list."""
    steps: list[int] = []
    original = Step.train_step

    def train_step(self: Step, batch: Any, **options: Any) -> Any:
        if self.step + 1 in steps:
            batch = batch._replace(clean=batch.clean.clone())
            batch.clean[0, 0, 0, 0] = float("inf")
        return original(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", train_step)
    return steps


def images_of(data: Path, step: int) -> list[int]:
    """Dataset indices of a step of 8 images, by the order that the seed gives: an oracle."""
    index = scan(data / "train")
    epoch, batch = divmod(step - 1, 4)
    found: list[int] = order(0, epoch, index.usable, len(index))[8 * batch : 8 * batch + 8].tolist()
    return found


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a bad batch."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(image_folder, out, *SMALL) == 0
    return out


@pytest.mark.parametrize("step", [1, 6])
def test_it_stops_and_names_the_images(
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
    poisoned: list[int],
    step: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poisoned.append(step)
    out = tmp_path / "run"
    more = [*SMALL, "--checkpoint-steps", "1", "--log-every", "10"]
    assert run(image_folder, out, *more) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the loss of step {step} is not finite" in said
    (event,) = events(out, "nonfinite")
    assert event["action"] == "stop"
    assert (event["step"], event["epoch"], event["batch"]) == (step, *divmod(step - 1, 4))
    assert event["index"] == [images_of(image_folder, step)]
    end = events(out, "end")[-1]
    assert "not finite" in end["reason"]
    # No checkpoint of it, nor of anything behind it.
    loaded = checkpoint.load_newest(out / "checkpoints")
    assert (loaded.state["step"] if loaded else 0) == step - 1
    poisoned.clear()  # mended
    assert run(image_folder, out, *more, "--resume") == 0
    assert same_weights(whole, out)


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_a_step_that_is_left_out_leaves_no_trace(
    image_folder: Path, tmp_path: Path, poisoned: list[int], accumulate: str
) -> None:
    more = [*SMALL, "--accumulate", accumulate, "--on-nan", "skip", "--max-steps", "6"]
    poisoned.extend([2, 5])
    out = tmp_path / "run"
    assert run(image_folder, out, *more) == 0
    assert [e["step"] for e in events(out, "nonfinite")] == [2, 5]
    assert all(e["action"] == "skip" for e in events(out, "nonfinite"))
    assert [e["loss"] is None for e in events(out, "step")] == [s in (2, 5) for s in range(1, 7)]
    assert all(value.isfinite().all() for value in weights(out).values())
    # The oracle: the same steps by hand, those two left out.
    seen = replayed(image_folder, tmp_path / "hand", [*more[:-4], "--max-steps", "6"], {2, 5})
    assert all(torch.equal(weights(out)[key], seen[key]) for key in seen)


def replayed(data: Path, out: Path, more: list[str], without: set[int]) -> dict[str, torch.Tensor]:
    """The averaged weights of a run whose `without` steps did nothing but count."""
    from fastsc.config.options import parse

    original, ema = Step.train_step, dict[str, torch.Tensor]()

    def train_step(self: Step, batch: Any, **options: Any) -> Any:
        if self.step + 1 in without:
            self.step += 1
            nan = torch.tensor(float("nan"))
            result: Any = Measured(nan.repeat(3), [], nan, self.ranks)
            self.last_loss = torch.zeros(())
        else:
            result = original(self, batch, **options)
        assert self.ema is not None
        ema.update({key: value.clone() for key, value in self.ema.net.state_dict().items()})
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "train_step", train_step)
        words = ["imagenet", "--pipeline", "cpu", "--data", str(data), "--out", str(out)]
        words += ["--resolution", "32", "--batch-size", "8", "--epochs", "2", "--precision", "fp32"]
        words += ["--log-every", "1", "--workers", "2"]
        assert train(parse([*words, *more])) == 0
    return ema


@pytest.fixture
def nan_in_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In that of step 3, whose loss is finite: as the square root's at zero."""
    clip = Step._clip

    def broken(self: Step, measured: bool) -> torch.Tensor:
        if self.step == 2:
            next(p for p in self.model.parameters()).grad[0, 0, 0, 0] = float("nan")  # type: ignore[index]
        return clip(self, measured)

    monkeypatch.setattr(Step, "_clip", broken)


@pytest.mark.usefixtures("nan_in_gradient")
def test_a_gradient_that_is_not_finite_is_left_out_too(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, *SMALL, "--on-nan", "skip") == 0
    assert [e["step"] for e in events(out, "nonfinite")] == [3]
    assert all(value.isfinite().all() for value in weights(out).values())


@pytest.mark.usefixtures("nan_in_gradient")
def test_weights_that_are_not_finite_are_not_saved(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint follows at once, and its thread or the next loss finds it, whichever first."""
    out, more = tmp_path / "run", [*SMALL, "--checkpoint-steps", "1"]
    assert run(image_folder, out, *more) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "weights after step 3 are not finite" in said or "loss of step 4" in said
    loaded = checkpoint.load_newest(out / "checkpoints")
    assert loaded is not None
    assert loaded.state["step"] == 2
    assert run(image_folder, out, *more, "--resume", "--on-nan", "skip") == 0
    assert [e["step"] for e in events(out, "nonfinite") if e["action"] == "skip"] == [3]
    assert all(value.isfinite().all() for value in weights(out).values())


def test_a_mistake_before_the_look_saves_nothing_bad(
    image_folder: Path,
    tmp_path: Path,
    poisoned: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU losses are looked at some steps later, and a broken image may come before."""
    monkeypatch.setattr(Training, "looks_at_every_loss", False)
    poisoned.append(2)
    train_step = Step.train_step

    def broken(self: Step, batch: Any, **options: Any) -> Any:
        if self.step == 3:
            raise UserError("a broken image")
        return train_step(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", broken)
    out = tmp_path / "run"
    assert run(image_folder, out, *SMALL, "--log-every", "10") == 2
    assert [event["step"] for event in events(out, "nonfinite")] == [2]
    assert checkpoint.load_newest(out / "checkpoints") is None


def test_nothing_but_bad_steps_ends_the_run(
    image_folder: Path,
    tmp_path: Path,
    poisoned: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fastsc.training.nonfinite.MOST_SKIPPED", 9)
    poisoned.extend(range(3, 1000))
    out = tmp_path / "run"
    assert run(image_folder, out, *SMALL, "--on-nan", "skip", "--epochs", "40") == 2
    assert len(events(out, "nonfinite")) == 9
    said = capsys.readouterr().err
    assert "of 9 steps in a row, to step 11, are not finite" in said


def test_training_that_diverges_stops(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, "--lr", "1e30", "--val", "none") == 2
    (event,) = events(out, "nonfinite")
    assert event["step"] == events(out, "step")[-1]["step"]
    assert events(out, "step")[-1]["loss"] is None


def test_the_watch_names_the_first_of_several() -> None:
    watch = LossWatch(Ranks())
    assert watch.look() is None
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 1.0], start=1):
        watch.note(step, torch.tensor(loss), torch.arange(step))
    assert watch.look() is None
    watch.send()
    step_ = watch.look()
    assert step_ is not None
    assert (step_.number, step_.index) == (2, [[0, 1]])
    assert watch.look() is None
