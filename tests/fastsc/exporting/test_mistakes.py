"""Mistakes and faults of an export: one line, status 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastsc.export import main
from fastsc.run.checkpoint import export_safetensors, read_metadata
from tests.fastsc.exporting.conftest import Run

pytestmark = pytest.mark.heavy

Folder = Path


def wrong(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a call that must fail, and that changes nothing in the folder."""

    def files() -> list[tuple[str, int]]:
        return sorted(
            (str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*")
        )

    before = files()
    capsys.readouterr()
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("fastsc.export: ")
    assert files() == before
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--to", "model.pt"], "unknown ending .pt"),
        (["RUN", "--to", "model.safetensors"], "unknown ending"),
        (["RUN", "--to", "caf\udce9.onnx"], "is no UTF-8"),
        (["RUN", "--to", "folder.pt2"], "is there already"),
        (["RUN", "--to", "taken.onnx"], "is there already"),
        (["RUN", "--to", "full"], "not empty"),
        (["RUN", "--to", "taken.onnx/model.pt2"], "taken.onnx"),
        (["RUN"], "--to"),
        (["RUN", "--to", "hub", "--input", "uint8"], "timm has its own"),
        (["RUN", "--to", "hub", "--with-normalization"], "timm has its own"),
        (["RUN", "--to", "model.pt2", "--results", "results.json"], "model card"),
        (["RUN", "--to", "hub", "--results-model", "a"], "--results FILE"),
        (["RUN", "--to", "hub", "--results", "none.json"], "none.json"),
        (["RUN", "--to", "hub", "--results", "list.json"], "list.json"),
        (["RUN", "--to", "hub", "--results", "results.json"], "--results-model a | b"),
        (["RUN", "--to", "hub", "--results", "results.json", "--results-model", "c"], "a, b"),
        (["nowhere", "--to", "hub"], "no such folder or file"),
        (["timm:resnet18", "--to", "hub"], "no such folder or file"),
        (["full", "--to", "hub"], "not a run's folder"),
        (["unfinished", "--to", "hub"], "no weights.safetensors yet"),
        (["cut.safetensors", "--to", "hub"], "not a weights file"),
    ],
)
def test_a_mistake(
    make_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    run = make_run()
    monkeypatch.chdir(tmp_path)
    Path("taken.onnx").write_text("mine")
    Path("full").mkdir()
    Path("full/note").write_text("mine")
    Path("folder.pt2").mkdir()
    Path("unfinished").mkdir()
    Path("unfinished/config.yaml").write_text("recipe: cifar100\n")
    Path("list.json").write_text("[]")
    Path("cut.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:5000])
    rows = [
        {"model": model, "question": "continuity", "name": "top1", "value": 0.5, "n": 3}
        for model in "ab"
    ]
    metadata = {"data": "d", "split": "val", "date": "", "models": ["a", "b"]}
    Path("results.json").write_text(json.dumps({"metadata": metadata, "results": rows}))
    assert said in wrong(tmp_path, [word.replace("RUN", "run") for word in words], capsys)


@pytest.mark.parametrize(
    ("architecture", "stem", "blurpool", "said"),
    [
        ("fastsc:resnet8w8", "cifar", False, "no network like fastsc:resnet8w8"),
        ("resnet18", "cifar", False, "--stem cifar"),
        ("resnet18", "imagenet", True, "--blurpool"),
        ("shufflenet_v2_x0_5", "imagenet", False, "no network like shufflenet"),
        pytest.param(
            *("alexnet", "imagenet", False, "no network like alexnet"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_network_that_timm_does_not_have(
    make_run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    architecture: str,
    stem: str,
    blurpool: bool,
    said: str,
) -> None:
    run = make_run(architecture, 64, stem, blurpool)
    line = wrong(tmp_path, [str(run), "--to", str(tmp_path / "hub")], capsys)
    assert said in line
    assert "FILE.onnx" in line


def test_a_network_of_ones_own_code(
    make_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation takes it by its function, and says so; an export has no such option."""
    file = make_run() / "weights.safetensors"
    metadata = {**read_metadata(file).values, "architecture": "mine:build"}
    export_safetensors(file, torch.nn.Linear(3, 5), metadata)
    line = wrong(tmp_path, [str(file), "--to", str(tmp_path / "m.onnx")], capsys)
    assert "its network is mine:build, whose code no file has run; RUN is a run's" in line
    assert "--weights" not in line


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(
    make_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, locked = make_run(), tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "locked" in wrong(tmp_path, [str(run), "--to", str(locked / "hub")], capsys)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package(
    make_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    monkeypatch.setattr("fastsc.cli.packages.installed", lambda name: name != package)
    line = wrong(tmp_path, [str(make_run()), "--to", str(tmp_path / "m.onnx")], capsys)
    assert line.endswith(f"m.onnx needs {package}: pip install -e '.[export]'\n")


def fails_with(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "error", "target"),
    [
        ("torch.export.export", RuntimeError("cannot trace\nthis"), "model.pt2"),
        ("safetensors.torch.save_file", OSError(28, "No space left on device"), "new/hub"),
    ],
)
def test_what_fails_on_the_way_leaves_nothing(
    make_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    error: Exception,
    target: str,
) -> None:
    run = make_run()
    monkeypatch.setattr(name, fails_with(error))
    line = wrong(tmp_path, [str(run), "--to", str(tmp_path / target)], capsys)
    assert str(error.args[-1]).partition("\n")[0] in line


def test_a_file_that_computes_something_else_is_not_kept(
    make_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run()

    class Other:
        def module(self) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda images: torch.full((len(images), 5), float("nan"))

    monkeypatch.setattr("torch.export.load", lambda path: Other())
    line = wrong(tmp_path, [str(run), "--to", str(tmp_path / "model.pt2")], capsys)
    assert "differ" in line


def test_what_comes_in_the_meantime_stays(
    make_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, target, load = make_run(), tmp_path / "model.pt2", torch.export.load

    def another_was_first(part: Path) -> object:
        target.write_text("mine")
        return load(part)

    monkeypatch.setattr("torch.export.load", another_was_first)
    assert main([str(run), "--to", str(target)]) == 2
    assert target.read_text() == "mine"
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    "target",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("model.pt2", "model.onnx")), "hub"],
)
@pytest.mark.usefixtures("forked")
def test_a_disk_that_is_full(make_run: Run, tmp_path: Path, target: str) -> None:
    """A process that may write no file of more than 100 kB."""
    if target == "model.onnx":
        pytest.importorskip("onnxscript")
    run = make_run()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from fastsc.export import main; sys.exit(main())"
    )
    words = [sys.executable, "-c", code, str(run), "--to", str(tmp_path / "new" / target)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "new").exists()
