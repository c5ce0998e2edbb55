"""The main job from the command line: its files, its resume, its exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastsc.config.options import parse
from fastsc.run import checkpoint
from fastsc.train import main
from fastsc.training.optimizer import lr_at
from tests.fastsc.runs import SMALL, events, run, same_weights, start, wait_for_step, weights
from tests.pipelines.conftest import BACKENDS, needs_dali, needs_ffcv, undecodable

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


@pytest.fixture
def data(pipeline: str, request: pytest.FixtureRequest) -> Path:
    """What --data is for a pipeline."""
    name = "beton_folder" if pipeline == "ffcv" else "image_folder"
    folder: Path = request.getfixturevalue(name)
    return folder


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs from begin to end; tests that write have one of their own."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(image_folder, out) == 0
    return out


@pytest.mark.parametrize("pipeline", BACKENDS)
def test_every_file_of_a_run(data: Path, tmp_path: Path, pipeline: str) -> None:
    out = tmp_path / "run"
    assert run(data, out, pipeline=pipeline) == 0
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "log.jsonl", "checkpoints", "weights.safetensors",
    }  # fmt: skip
    assert len(list((out / "checkpoints").iterdir())) == 2

    (header,) = events(out, "header")
    assert header["pipeline"] == pipeline
    assert header["device"] == "cpu"
    assert header["images"] == 32
    assert header["images_left_out"] == 0
    assert {"versions", "hardware", "commit", "command", "recipe", "decoder", "index_hash"} <= (
        header.keys()
    )
    assert {"alpha", "ds", "ce_views", "strengths", "seed", "batch_size"} <= header.keys()
    steps = events(out, "step")
    assert [event["step"] for event in steps] == list(range(1, 9))
    for event in steps:
        for name in ("loss", "ce", "ds", "ds_relative", "lr", "pairs_per_s", "loader_wait"):
            assert isinstance(event[name], float), name
        assert event["loss"] == pytest.approx(event["ce"] + event["alpha"] * event["ds"], rel=1e-5)
    epochs = events(out, "epoch")
    assert [event["epoch"] for event in epochs] == [0, 1]
    assert all(event["val"]["n"] == 12 and 0 <= event["val"]["top1"] <= 1 for event in epochs)
    assert events(out, "end")[0]["reason"] == "done"

    metadata = checkpoint.load_safetensors(out / "weights.safetensors")[1]
    assert metadata["architecture"] == "fastsc:resnet8w8"
    assert metadata["resolution"] == 32
    assert metadata["classes"] == ["apple", "boat", "cloud", "door"]
    assert "conv1.weight" in weights(out)  # the architecture's own names


def test_weights_do_not_depend_on_the_pipeline_where_pixels_agree(
    image_folder: Path, tmp_path: Path
) -> None:
    for pipeline in ("cpu", "memory"):
        out = tmp_path / pipeline
        more = ["--exact-decode", "--max-steps", "4", "--val", "none"]
        assert run(image_folder, out, *more, pipeline=pipeline) == 0
    assert same_weights(tmp_path / "cpu", tmp_path / "memory")


def test_config_of_a_run_runs_again(image_folder: Path, tmp_path: Path) -> None:
    more = ["--alpha", "1", "--max-steps", "3", "--val", "none"]
    assert run(image_folder, tmp_path / "a", *more) == 0
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert config["alpha"] == 1
    assert config["recipe"] == "imagenet"
    again = [str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b")]
    assert main(again) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_max_steps_ends_early_and_goes_on(image_folder: Path, tmp_path: Path, whole: Path) -> None:
    assert run(image_folder, tmp_path / "parts", "--max-steps", "3") == 0
    assert events(tmp_path / "parts", "end")[-1]["steps"] == 3
    assert events(tmp_path / "parts", "epoch")[-1]["val"]["n"] == 12
    assert run(image_folder, tmp_path / "parts", "--resume", "--max-steps", "6") == 0
    changed = events(tmp_path / "parts", "resume")[0]["changed"]
    assert changed["max_steps"] == 6
    assert changed.keys().isdisjoint({"alpha", "batch_size", "workers", "world_size"})
    assert run(image_folder, tmp_path / "parts", "--resume") == 0
    assert [e["step"] for e in events(tmp_path / "parts", "step")] == list(range(1, 9))
    assert same_weights(whole, tmp_path / "parts")


def test_resume_of_a_finished_run_touches_nothing(image_folder: Path, whole: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in whole.rglob("*")}
    assert run(image_folder, whole, "--resume") == 0
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in whole.rglob("*")}
    assert before == after


def test_resume_without_a_checkpoint_starts_over(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-steps", "1", "--val", "none"]
    assert run(image_folder, tmp_path / "run", "--resume", *more) == 0
    assert "no checkpoint yet; starting over" in capsys.readouterr().out


@pytest.mark.parametrize(
    "pipeline",
    # That every pipeline goes on at any batch is in the contract of pipelines.
    [
        pytest.param("dali", marks=[needs_dali, pytest.mark.slow]),
        "cpu",
        pytest.param("ffcv", marks=[needs_ffcv, pytest.mark.slow]),
        pytest.param("memory", marks=pytest.mark.slow),
    ],
)
def test_kill_and_resume_is_bit_identical(data: Path, tmp_path: Path, pipeline: str) -> None:
    more = ("--epochs", "30", "--checkpoint-steps", "3", "--val", "none", "--max-steps", "25")
    assert run(data, tmp_path / "whole", *more, pipeline=pipeline) == 0
    out = tmp_path / "killed"
    process = start(data, out, pipeline, *more)
    wait_for_step(process, out, 6)  # 4 steps an epoch: in the middle of the second
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "weights.safetensors").exists()
    with open(out / "log.jsonl", "a", encoding="utf-8") as log:
        log.write('{"event": "step", "st')  # what a kill leaves
    assert run(data, out, *more, "--resume", pipeline=pipeline) == 0
    assert len(events(out, "resume")) == 1
    assert same_weights(tmp_path / "whole", out)
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line)
    # The logged losses after the resume are those of the uninterrupted run.
    losses = {e["step"]: e["loss"] for e in events(tmp_path / "whole", "step")}
    assert all(e["loss"] == losses[e["step"]] for e in events(out, "step"))


def test_sigterm_leaves_a_resumable_run(image_folder: Path, tmp_path: Path) -> None:
    more = ("--epochs", "30", "--val", "none", "--max-steps", "25")
    out = tmp_path / "stopped"
    process = start(image_folder, out, "cpu", *more)
    wait_for_step(process, out, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert "SIGTERM" in events(out, "end")[-1]["reason"]
    assert run(image_folder, out, *more, "--resume") == 0
    assert run(image_folder, tmp_path / "whole", *more) == 0
    assert same_weights(tmp_path / "whole", out)


def test_broken_newest_checkpoint_is_passed_over(
    image_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, "--max-steps", "6", "--checkpoint-steps", "2") == 0
    newest = max((out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run(image_folder, out, "--resume") == 0
    assert events(out, "resume")[0]["step"] == 4
    assert same_weights(whole, out)


def test_plain_training_never_sees_the_perturbed_view(image_folder: Path, tmp_path: Path) -> None:
    plain = ("--alpha", "0", "--ce-views", "clean", "--max-steps", "4", "--val", "none")
    assert run(image_folder, tmp_path / "a", *plain) == 0
    assert run(image_folder, tmp_path / "b", *plain, "--strengths", "0", "0", "0", "0") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert all(event["ds_relative"] > 0 for event in events(tmp_path / "a", "step"))
    assert all(event["ds_relative"] == 0 for event in events(tmp_path / "b", "step"))


def test_broken_images_are_skipped_and_logged_once(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "train" / "boat" / "empty.jpg").write_bytes(b"")
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    (data / "val" / "boat" / "hole.png").write_bytes(undecodable())
    out = tmp_path / "run"
    assert run(data, out, "--on-bad-image", "skip", "--epochs", "3") == 0
    named = [Path(event["path"]).name for event in events(out, "bad_image")]
    assert sorted(named) == ["empty.jpg", "hole.png", "hole.png"]
    assert all(event["reason"] for event in events(out, "bad_image"))
    assert events(out, "header")[0]["images_left_out"] == 1
    assert all(event["val"]["n"] == 12 for event in events(out, "epoch"))


def test_broken_image_in_training_raises_and_stays_resumable(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    hole = data / "train" / "boat" / "hole.png"
    hole.write_bytes(undecodable())
    out = tmp_path / "run"
    assert run(data, out, "--val", "none") == 2
    error = capsys.readouterr().err
    assert list((out / "checkpoints").iterdir())
    assert error.count("\n") == 1
    assert "hole.png" in error
    assert "--on-bad-image skip" in error
    assert str(hole) in events(out, "end")[-1]["reason"]
    assert run(data, out, "--val", "none", "--on-bad-image", "skip", "--resume") == 0


def test_broken_validation_image_costs_no_training(
    image_folder: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    hole = data / "val" / "boat" / "hole.png"
    hole.write_bytes(undecodable())
    out = tmp_path / "run"
    assert run(data, out) == 2
    assert "hole.png" in capsys.readouterr().err
    hole.write_bytes((data / "val" / "boat" / "00.jpg").read_bytes())  # mended
    assert run(data, out, "--resume") == 0
    assert events(out, "resume")[0]["step"] == 4
    assert same_weights(whole, out)


def test_stop_in_validation_goes_on_there(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("fastsc.training.fit.validate", stopped)
        assert run(image_folder, out) == 75
    assert run(image_folder, out, "--resume") == 0
    assert [event["epoch"] for event in events(out, "epoch")] == [0, 1]
    assert [event["step"] for event in events(out, "step")] == list(range(1, 9))


# --- the options reach the training ---------------------------------------------------------------


OPTIONS = [
    ("--alpha", "1"),
    ("--ds", "l2"),
    ("--ds", "relative"),
    ("--ds", "sq"),
    ("--front", "rgb-luma"),
    ("--ds-at", "logits"),
    ("--stop-gradient", "clean"),
    ("--ce-views", "clean"),
    ("--label-smoothing", "0"),
    ("--lr", "0.2"),
    ("--schedule", "constant"),
    ("--warmup-epochs", "0"),
    ("--momentum", "0.5"),
    ("--no-nesterov",),
    ("--weight-decay", "0.1"),
    ("--crop", "none"),
    ("--no-flip",),
    ("--strengths", "0.1", "0.1", "0.1", "0.1"),
    ("--precision", "bf16"),
    ("--seed", "1"),
]
BRIEFLY = ("--val", "none", "--max-steps", "6")  # two of them after the warm-up


@pytest.fixture(scope="module")
def plain_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    assert run(image_folder, out, *BRIEFLY) == 0
    return out


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_option_changes_the_training(
    image_folder: Path, tmp_path: Path, plain_run: Path, option: tuple[str, ...]
) -> None:
    assert run(image_folder, tmp_path / "run", *BRIEFLY, *option) == 0
    a, b = weights(plain_run), weights(tmp_path / "run")
    assert any(a[key].shape != b[key].shape or not torch.equal(a[key], b[key]) for key in a)
    for event in events(tmp_path / "run", "step"):
        expected = event["ce"] + event["alpha"] * event["ds"]
        assert event["loss"] == pytest.approx(expected, rel=1e-5)


def test_learning_rate_is_the_schedules(plain_run: Path, image_folder: Path) -> None:
    config = parse(["imagenet", "--data", str(image_folder), *SMALL]).optim
    for event in events(plain_run, "step"):
        assert event["lr"] == lr_at(event["step"] - 1, config, 4)


@pytest.mark.parametrize(
    "option",
    [
        # A number, a word, a switch, several numbers; docs/options.md, which is tested, has all.
        o if o[0] in ("--alpha", "--ds-at", "--no-flip", "--strengths")
        else pytest.param(o, marks=pytest.mark.slow)
        for o in OPTIONS if o[0] != "--seed"
    ],
    ids=" ".join,
)  # fmt: skip
def test_resume_refuses_other_science(
    image_folder: Path, plain_run: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in plain_run.rglob("*")}
    assert run(image_folder, plain_run, *BRIEFLY, "--resume", *option) == 2
    assert "has changed" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in plain_run.rglob("*")}
