"""A machine with torch, torchvision, numba and pyyaml alone: training from Python works there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastsc.run import checkpoint
from fastsc.train import main
from tests.fastsc.runs import events, weights

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent.parent.parent

# Python runs this before anything else: what is refused is as good as not installed.
REFUSE = """
from importlib.machinery import PathFinder

REFUSED = {
    "albumentations", "captum", "cv2", "docstring_parser", "ffcv", "hypothesis", "jsonargparse",
    "kornia", "lightning", "matplotlib", "mlxtend", "nvidia.dali", "nvidia.nvimgcodec", "pandas",
    "rich", "safetensors", "scipy", "simplejpeg", "skimage", "sklearn", "tensorboard", "timm",
    "tyro", "umap", "wandb",
}
find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    # None rather than an error: torch asks for what may be there, and expects an answer.
    words = name.split(".")
    refused = any(".".join(words[:n]) in REFUSED for n in range(1, len(words) + 1))
    return None if refused else find(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)  # of the class and of instances
"""

TINY = {
    "model": "fastsc:resnet8w4", "resolution": 32, "batch_size": 8, "epochs": 2, "lr": 1,
    "precision": "fp32", "log_every": 1, "workers": 2, "device": "cpu",
}  # fmt: skip

NEEDS_MORE: list[tuple[dict[str, object], str]] = [
    ({"ema": 0.9}, "--ema: timm is not installed; pip install timm, or leave the option out"),
    ({"model": "timm:resnet10t"}, "--model timm:resnet10t: timm is not installed"),
    ({"tensorboard": True}, "--tensorboard: tensorboard is not installed"),
]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python that is started has those packages alone."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(REFUSE)
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([others] if others else [])]))


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


def ran(code: str) -> str:
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.usefixtures("bare")
def test_what_is_refused_is_missing() -> None:
    assert "No module named 'rich'" in python("-c", "import rich.console").stderr
    assert "No module named 'nvidia.dali'" in python("-c", "import nvidia.dali").stderr


@pytest.mark.parametrize("pipeline", ["cpu", pytest.param("memory", marks=pytest.mark.slow)])
def test_training_and_resume(
    image_folder: Path,
    tmp_path: Path,
    pipeline: str,
    bare: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what needs more says so before anything is written: one process is asked for all."""
    out, refused = tmp_path / "run", tmp_path / "refused"
    values = TINY | {"data": str(image_folder), "pipeline": pipeline, "out": str(out)}
    said = ran(
        "import fastsc, fastsc.kernels, fastsc.pipelines, fastsc.training.step\n"
        "from fastsc import ColorJitter, ContinuityLoss\n"
        "from fastsc.config.recipes import configure\n"
        "from fastsc.pipelines import UserError\n"
        "from fastsc.training.loop import train\n"
        f"values = {values}\n"
        "assert train(configure('imagenet', **values, max_steps=3)) == 0\n"
        "assert train(configure('imagenet', **values, resume=True)) == 0\n"
        f"for option, _ in {NEEDS_MORE}:\n"
        f"    option['out'] = {str(refused)!r}\n"
        "    try:\n"
        "        train(configure('imagenet', **values | option))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    assert {p.name for p in out.iterdir()} == {"config.yaml", "log.jsonl", "checkpoints"}
    assert [event["step"] for event in events(out, "step")] == list(range(1, 9))
    assert [event["step"] for event in events(out, "resume")] == [3]
    assert [event["reason"] for event in events(out, "end")] == ["done"] * 2
    assert events(out, "epoch")[-1]["val"]["n"] == 12
    advice = "weights.safetensors not written: pip install safetensors, then --resume"
    assert [event["reason"] for event in events(out, "warning")] == [advice] * 2
    *lines, ema, model, tensorboard = said.splitlines()
    for line, (_, words) in zip((ema, model, tensorboard), NEEDS_MORE, strict=True):
        assert line.startswith(words)
    assert not refused.exists()
    assert lines.count(f"warning: {advice} (step 8)") == 1
    assert lines[-1] == f"wrote {out / 'log.jsonl'}"
    (header,) = events(out, "header")
    bare_state = newest(out)
    assert bare_state["step"] == 8

    # With all packages: the same weights, and what was left out is made up for.
    monkeypatch.setenv("FASTSC_DECODER", header["decoder"])
    assert main([str(out / "config.yaml"), "--out", str(tmp_path / "whole")]) == 0
    whole = newest(tmp_path / "whole")["model"]
    assert all(torch.equal(bare_state["model"][key], whole[key]) for key in whole)
    assert main([str(out / "config.yaml"), "--out", str(out), "--resume"]) == 0
    exported = weights(out)
    assert all(torch.equal(exported[key], whole[key]) for key in whole)


def newest(out: Path) -> checkpoint.State:
    loaded = checkpoint.load_newest(out / "checkpoints")
    assert loaded is not None
    return loaded.state


@pytest.mark.usefixtures("bare")
def test_the_command_line_says_what_it_needs(tmp_path: Path) -> None:
    for words in (["imagenet", "--data", "d"], ["--help"]):
        done = python("-m", "fastsc.train", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "fastsc.train: python -m fastsc.train needs tyro: pip install tyro\n"
        )
    done = python("-m", "fastsc.train", "--list-recipes")
    assert done.returncode == 0
    assert "imagenet " in done.stdout
