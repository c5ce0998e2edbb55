"""Sweeps of real trainings, a few steps each: nothing is run twice, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from fastsc import reproduce
from fastsc.errors import UserError
from fastsc.reproduction.grid import parse_study
from fastsc.reproduction.records import read_records
from fastsc.reproduction.runner import FailedError, Sweep
from fastsc.run.checkpoint import load_safetensors
from fastsc.run.log import read_log
from tests.fastsc.reproduction.test_study import GRID, grid

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

OPTIONS = {"resolution": 16, "model": "fastsc:resnet8w4", "batch_size": 8, "workers": 1,
           "precision": "fp32", "crop": "none"}  # fmt: skip
ARMS = {name: {**arm, "seeds": 1} for name, arm in GRID["arms"].items() if name != "ce-2e"}


def study(**changes: object):
    text = grid(**{"options": OPTIONS, "epochs": 1, "arms": ARMS, "baselines": ["both"], **changes})
    return parse_study(text, "small")


@pytest.fixture(scope="module")
def done(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of three arms that is done. It is shared: tests that write copy the folder."""
    sweep = Sweep(study(), image_folder, tmp_path_factory.mktemp("sweep"), jobs=2)
    lines: list[str] = []
    sweep.run(sweep.tasks(), lines.append)
    assert [line.partition("]")[0] for line in lines] == ["[1/3", "[2/3", "[3/3"]
    return sweep


def same_weights(run: Path, other: Path) -> None:
    """Bit for bit."""
    a, b = (load_safetensors(folder / "weights.safetensors")[0] for folder in (run, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def logs(sweep: Sweep) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sweep.out.glob("runs/*/log.jsonl")}


def test_a_run_is_the_training_command_and_leaves_its_record(done: Sweep) -> None:
    records = read_records([done.out / "records"])
    assert set(records) == {("ce", 0), ("both", 0), ("default", 0)}
    for (arm, seed), record in records.items():
        [run] = done.out.glob(f"runs/{arm}-{seed}-*")
        events = read_log(run / "log.jsonl")
        val = next(event["val"] for event in events if event["event"] == "epoch")
        assert record.val == val
        assert record.options["alpha"] == events[0]["alpha"]
        assert (record.steps, record.images) == (4, {"train": 32, "val": 12})
        assert not record.trial


@pytest.mark.usefixtures("in_process")
def test_images_that_change_before_a_run_looks_at_them(image_folder: Path, tmp_path: Path) -> None:
    """Its record would stand under the key of images that it did not see."""
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    sweep = Sweep(study(), data, tmp_path / "out")
    [task] = sweep.tasks(["both"])
    victim = next((data / "val").rglob("*.jpg"))
    shutil.copy(next((data / "train").rglob("*.jpg")), victim.with_name("new.jpg"))
    with pytest.raises(UserError, match="has seen other images than there were when it was"):
        sweep.run([task], lambda line: None)
    assert not (tmp_path / "out" / "records").exists()


def test_a_records_command_trains_the_same_weights(done: Sweep, tmp_path: Path) -> None:
    record = read_records([done.out / "records"])["both", 0]
    words = record.command.replace("DIR", str(done.data)).split()
    assert words[:3] == ["python", "-m", "fastsc.train"]
    subprocess.run([sys.executable, *words[1:], "--out", str(tmp_path / "again")], check=True)
    [run] = done.out.glob("runs/both-0-*")
    same_weights(tmp_path / "again", run)


def test_what_is_done_is_not_run_again(done: Sweep) -> None:
    before = logs(done)
    tasks = done.tasks()
    assert all(task.done for task in tasks)
    done.run(tasks, lambda line: pytest.fail(f"ran: {line}"))
    assert logs(done) == before


def test_a_committed_record_is_not_run_again_in_another_folder(done: Sweep, tmp_path: Path) -> None:
    elsewhere = Sweep(done.study, done.data, tmp_path, known=[done.out / "records"])
    assert all(task.done for task in elsewhere.tasks())
    anew = Sweep(done.study, done.data, tmp_path)
    assert not any(task.done for task in anew.tasks())
    other = Sweep(study(epochs=2), done.data, tmp_path, known=[done.out / "records"])
    assert not any(task.done for task in other.tasks())
    trial = Sweep(done.study, done.data, tmp_path, known=[done.out / "records"], trial=True)
    assert not any(task.done for task in trial.tasks())
    # `ce` differs from `default` in options, so that its record says nothing of it.
    assert len({task.key for task in done.tasks()}) == 3


def test_other_seeds_are_other_runs_and_come_seed_by_seed(done: Sweep) -> None:
    tasks = done.tasks(["both", "default", "both"], [7, 8, 8])
    assert [task.name for task in tasks] == ["both-7", "default-7", "both-8", "default-8"]
    assert not any(task.done for task in tasks)
    assert [task.config.run.seed for task in tasks] == [7, 7, 8, 8]


def test_a_lost_record_is_made_from_the_run(done: Sweep) -> None:
    path = done.out / "records" / "both-0.json"
    text, before = path.read_text(), logs(done)
    path.unlink()
    done.run(done.tasks(), lambda line: None)
    assert path.read_text() == text
    assert logs(done) == before  # the training found itself finished


def test_the_cores_are_shared_by_what_runs(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by jobs that have nothing to do."""
    threads = list[str]()

    def run(self: object, words: list[str], env: dict[str, str], **_: object) -> object:
        threads.append(env["OMP_NUM_THREADS"])
        raise InterruptedError

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr("fastsc.cli.children.Children.run", run)
    for jobs in (1, 2, 8):
        sweep = Sweep(study(), image_folder, tmp_path, jobs=jobs)
        with pytest.raises(FailedError):
            sweep.run(sweep.tasks(["both"]), lambda line: None)
    assert threads == ["6", "6", "6"]


def test_a_failure_has_the_trainings_words_and_the_others_go_on(
    image_folder: Path, tmp_path: Path
) -> None:
    arms = {**ARMS, "bad": {"label": "bad", "seeds": 1, "options": {"num_classes": 2}}}
    sweep = Sweep(study(arms=arms), image_folder, tmp_path)
    lines: list[str] = []
    with pytest.raises(FailedError) as failed:
        sweep.run(sweep.tasks(["bad", "both"]), lines.append)
    assert failed.value.status == 2
    assert "bad-0" in lines[0]
    assert "--num-classes 2" in lines[0]
    assert [path.name for path in tmp_path.glob("records/*")] == ["both-0.json"]


def test_a_folder_without_validation_is_a_mistake(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(image_folder / "train")
    with pytest.raises(UserError, match="--val none"):
        Sweep(study(), tmp_path, tmp_path / "out").tasks()
    without = study().changed({"val": "none"})
    with pytest.raises(UserError, match="a study needs validation images"):
        Sweep(without, tmp_path, tmp_path / "out").tasks()


def test_a_stopped_sweep_goes_on(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in mid-training: 75, a checkpoint; the same command ends with the same weights."""
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(grid(options=OPTIONS, epochs=16, arms=ARMS, baselines=["both"]))
    command = [str(path), "--data", str(image_folder), "--out", str(out), "--arms", "both"]
    command += ["--known", str(tmp_path)]

    over = threading.Event()

    def stop_at_the_first_checkpoint() -> None:
        while not over.wait(0.01):
            if list(out.glob("runs/*/checkpoints/*.pt")):
                os.kill(os.getpid(), signal.SIGTERM)
                break

    stopper = threading.Thread(target=stop_at_the_first_checkpoint)
    stopper.start()
    try:
        assert reproduce.main(command) == 75
    finally:
        over.set()
        stopper.join()
    said = capsys.readouterr().err
    assert said.strip() == "fastsc.reproduce: interrupted; the same command goes on"
    [run] = out.glob("runs/*")
    assert read_log(run / "log.jsonl")[-1]["status"] == 75
    assert reproduce.main(command) == 0
    whole = Sweep(parse_study(path.read_text(), "small"), image_folder, tmp_path / "whole")
    whole.run(whole.tasks(["both"]), lambda line: None)
    [other] = whole.out.glob("runs/*")
    same_weights(run, other)


@pytest.mark.usefixtures("in_process", "no_page")
def test_an_evaluation_is_part_of_the_record(image_folder: Path, tmp_path: Path) -> None:
    asked = {"arms": ["both"], "questions": ["gradients", "transfer"], "seeds": 1}
    asked["images"] = {"gradients": 4}
    sweep = Sweep(study(evaluate=asked), image_folder, tmp_path)
    sweep.run(sweep.tasks(["both", "default"]), lambda line: None)
    records = read_records([tmp_path / "records"])
    assert records["default", 0].figures == {}
    record = records["both", 0]
    results = json.loads((next(tmp_path.glob("evaluations/*")) / "results.json").read_text())
    assert record.figures == {
        f"{row['question']}/{row['name']}": row["value"] for row in results["results"]
    }
    assert record.figures["gradients/gradient_norm"] > 0  # type: ignore[operator]
    assert record.asked["left_out"] == ["transfer"]  # no data set was named
    assert record.asked["images"] == {"gradients": 4}
    assert record.asked["sizes"]["gradients"] == 4
    assert all(task.done for task in sweep.tasks(["both", "default"]))
    more = study(evaluate={**asked, "images": {"gradients": 5}})
    [both, default] = Sweep(more, image_folder, tmp_path).tasks(["both", "default"])
    assert default.done
    assert not both.done


@pytest.mark.usefixtures("in_process", "no_page")
def test_what_the_data_cannot_answer_is_left_out_by_name(
    image_folder: Path, tmp_path: Path
) -> None:
    """One image a class has no neighbour of its class: the record says so, and is done."""
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    (data / "train").symlink_to(image_folder / "train")
    for folder in (image_folder / "val").iterdir():
        (data / "val" / folder.name).mkdir()
        first = sorted(folder.iterdir())[0]
        (data / "val" / folder.name / first.name).symlink_to(first)
    asked = {"arms": ["both"], "questions": ["gradients", "neighbours"], "seeds": 1}
    asked["images"] = {"gradients": 2, "neighbours": 2}
    sweep = Sweep(study(evaluate=asked), data, tmp_path / "out")
    sweep.run(sweep.tasks(["both"]), lambda line: None)
    record = read_records([tmp_path / "out" / "records"])["both", 0]
    assert record.asked["left_out"] == ["neighbours"]
    assert {name.partition("/")[0] for name in record.figures} == {"gradients"}
    assert sweep.tasks(["both"])[0].done


@pytest.mark.usefixtures("in_process")
def test_a_collapsed_run_is_a_record(image_folder: Path, tmp_path: Path) -> None:
    """Features at a point have no ds_relative; that is a finding, and no fault."""
    sweep = Sweep(study(), image_folder, tmp_path)
    [task] = sweep.tasks(["both"])
    sweep.run([task], lambda line: None)
    log = sweep.folder(task) / "log.jsonl"
    events = read_log(log)
    for event in events:
        if event["event"] == "epoch":
            event["val"] |= {"ds_relative": None}
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "records" / "both-0.json").unlink()
    lines: list[str] = []
    sweep.run(sweep.tasks(["both"]), lines.append)
    assert "ds_relative undefined" in lines[0]
    assert read_records([tmp_path / "records"])["both", 0].val["ds_relative"] is None
