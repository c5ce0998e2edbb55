"""bench/gpu.sh: its parts, its verdicts, and every line of it on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_decoders, gpu_runs, handover, step
from bench.common import Result
from bench.kernel_table import Detail, columns

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent.parent


def rows(**figures: float) -> list[dict[str, Any]]:
    names = {"single_2n": "step/single-2n", "pair": "step/pair"}
    return [{"name": names[key], "median": figure} for key, figure in figures.items()]


def test_verdicts() -> None:
    cases = {
        "pair_view/fastsc-triton-bf16": {"share_of_copy": 0.8},
        "pool_ds/cosine-triton": {"share_of_copy": 0.5},
    }
    found = {
        "kernels": {"metadata": {"cases": cases}, "results": []},
        "step": {"results": rows(single_2n=7000.0, pair=3400.0)},
        "low": {"results": [{"name": "low/bf16", "loader_wait": 0.01}]},
    }
    seen = [(row["seen"], row["met"]) for row in gpu.judge(found)]
    assert seen == [
        (pytest.approx(7000 / 3400 / 2), False),
        (0.8, True),
        (pytest.approx(2.0), False),
        (0.01, True),
    ]


def test_what_was_not_measured_is_no_verdict() -> None:
    assert all(row["seen"] is row["met"] is None for row in gpu.judge({}))
    skipped = {"step": {"results": [{"name": "step/pair", "skipped": "no time"}]}}
    assert all(row["met"] is None for row in gpu.judge(skipped))


def test_the_rows_that_goals_name_are_those_of_the_benchmarks() -> None:
    """A misspelt row would be no verdict for ever; Triton's are made where there is a GPU alone."""
    views = (ROOT / "bench" / "kernel_views.py").read_text()
    assert 'ours("triton-bf16", "triton"' in views
    assert 'f"pair_view/fastsc-{name}"' in views
    assert 'f"pool_ds/{kind}-{name}"' in (ROOT / "bench" / "kernel_ds.py").read_text()
    assert '"low/bf16"' in (ROOT / "bench" / "gpu_runs.py").read_text()


def test_parts_fit_the_budget(tmp_path: Path) -> None:
    made = [part for part in gpu.parts(False, tmp_path, tmp_path) if part.name not in gpu.EXTRA]
    assert sum(part.limit_s for part in made) <= gpu.BUDGET_S == 8 * 60
    names = [part.name for part in made]
    assert names.index("exact") < names.index("kernels"), "exactness before speed"
    assert "tests/pipelines/test_handover.py" in gpu.TESTS
    assert len(gpu.TESTS) == 6


def test_unknown_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--dry", "--only", "setp", "--out", str(tmp_path / "out")])
    assert "no parts setp; there are import, exact" in capsys.readouterr().err


def test_a_training_that_is_not_as_it_must_be_is_a_row(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(runs: gpu_runs.Runs) -> gpu_runs.Checks:
        yield "a", lambda: {"steps": runs.train("a", max_steps=2)[-1]["steps"]}
        yield "b", lambda: {"steps": runs.train("b", max_steps=2, alpha=-1.0)}

    monkeypatch.setitem(gpu_runs.PARTS, "low", checks)
    words = ["low", "--dry", "--device", "cpu", "--data", str(image_folder)]
    assert gpu_runs.main([*words, "--json", str(tmp_path / "low.json")]) == 1
    one, other = json.loads((tmp_path / "low.json").read_text())["results"]
    assert (one["met"], one["steps"]) == (True, 2)
    assert (other["met"], other["said"]) == (
        False,
        "UserError: --alpha must be at least 0, not -1 (from 0 to 1,000,000)",
    )


def test_a_decoder_that_dies_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(args, -11, "", "")

    monkeypatch.setattr(gpu_decoders.subprocess, "run", died)
    monkeypatch.setattr(gpu_decoders, "installed", lambda module: True)
    path = tmp_path / "decoders.json"
    assert gpu_decoders.main([str(tmp_path), "--device", "cpu", "--json", str(path)]) == 1
    found = json.loads(path.read_text())["results"]
    assert [(row["name"], row["said"]) for row in found] == [
        ("region", "status -11: "), ("hardware", "status -11: "),
    ]  # fmt: skip


def test_a_part_that_fails_or_hangs_is_a_line(tmp_path: Path) -> None:
    code = "import sys; print('so far'); sys.exit(3)"
    failed = gpu.run(gpu.Part("a", [sys.executable, "-c", code], 60), tmp_path, False, 60)
    assert (failed["state"], failed["said"]) == ("failed (3)", "so far")
    code = "import time; print('so far', flush=True); time.sleep(60)"
    hung = gpu.run(gpu.Part("b", [sys.executable, "-c", code], 1.5), tmp_path, False, 60)
    assert (hung["state"], hung["said"]) == ("out of time", "so far")
    assert gpu.run(gpu.Part("c", ["no-such"], 3), tmp_path, True, 0)["state"] == "left out"


def test_the_device_s_time_is_what_shares_are_of() -> None:
    rows = [Result("copy/torch", 9.0, 9, 9, "ms", 3), Result("a/b", 8.0, 8, 8, "ms/image", 3)]
    details = {"copy/torch": Detail(6000, None, 1, 2.0), "a/b": Detail(1000, 0.1, 2, 0.5)}
    found = columns(rows, details)
    assert found["a/b"]["gb_per_s"] == pytest.approx(1000 / 0.5 / 1e6, abs=1e-3)
    assert found["a/b"]["share_of_copy"] == pytest.approx(2 / 3, abs=1e-4)
    details = {name: Detail(d.bytes) for name, d in details.items()}
    assert columns(rows, details)["a/b"]["share_of_copy"] == pytest.approx(3 / 16, abs=1e-4)


@pytest.fixture
def as_it_was() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_handover(tmp_path: Path, as_it_was: None) -> None:
    path = tmp_path / "handover.json"
    tiny = ["--images", "6", "--size", "16", "--batch", "3", "--json", str(path)]
    assert handover.main(tiny) == 0
    rows = {row["name"]: row.get("median") for row in json.loads(path.read_text())["results"]}
    for name in ("cpu", "memory"):
        assert rows[f"handover/{name}-largest"] == 0
        assert rows[f"handover/{name}"] > 0


def test_views_that_differ_are_told(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(handover, "PIPELINES", ("cpu",))
    monkeypatch.setattr(handover, "difference", lambda here, there: ([0.0, 0.5, 0.5], 2.0))
    assert handover.main(["--images", "6", "--size", "16", "--batch", "3"]) == 1
    said = capsys.readouterr().out
    assert "handover/cpu-levels: 0.5 levels apart, where 0 is the most" in said
    assert "handover/cpu-largest: 2 levels apart" in said


def test_step(tmp_path: Path, as_it_was: None, capsys) -> None:
    path = tmp_path / "step.json"
    tiny = "--model fastsc:resnet8w4 --stem cifar --size 16 --batch 2 --classes 3 --rounds 1"
    rows = "--only pair-eager pair-eager-separate pair-eager-nchw"
    step.main([*tiny.split(), *rows.split(), "--json", str(path)])
    results = json.loads(path.read_text())["results"]
    assert [row["unit"] for row in results] == ["pairs/s"] * 3
    with pytest.raises(SystemExit):
        step.main(["--only", "pear"])
    assert "no rows pear" in capsys.readouterr().err
    step.main([*tiny.split(), "--only", "pair-eager", "--seconds", "-1", "--json", str(path)])
    assert "were over" in json.loads(path.read_text())["results"][0]["skipped"]


@pytest.mark.slow
def test_every_line_runs_dry(tmp_path: Path) -> None:
    command = [str(ROOT / "bench" / "gpu.sh"), "--dry", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {part["state"] for part in found["parts"].values()} == {"passed"}
    assert len(found["parts"]) == 9
