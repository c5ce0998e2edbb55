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

from bench import gpu, handover, step
from bench.common import Result
from bench.kernel_table import Detail, columns

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent.parent
ROWS = (
    "pair_view/kornia-compiled", "pair_view/fastsc-triton-bf16", "pool_ds/cosine-separate",
    "pool_ds/cosine-triton",
)  # fmt: skip


def document(**medians: float) -> dict[str, Any]:
    names = {"single_2n": "step/single-2n", "pair": "step/pair"}
    return {"results": [{"name": names[key], "median": m} for key, m in medians.items()]}


def kernels(device_ms: tuple[float, ...], shares: tuple[float, ...]) -> dict[str, Any]:
    rows = zip(ROWS, device_ms, shares, strict=True)
    cases = {name: {"device_ms": ms, "share_of_copy": share} for name, ms, share in rows}
    return {"metadata": {"cases": cases}, "results": []}


def test_verdicts() -> None:
    found = {
        "kernels": kernels((6.2, 0.2, 0.4, 0.1), (0.1, 0.8, 0.2, 0.5)),
        "step": document(single_2n=7000.0, pair=3400.0),
    }
    seen = [(row["seen"], row["met"]) for row in gpu.judge(found)]
    assert seen == [
        (0.8, True),
        (pytest.approx(31), True),
        (pytest.approx(2.0), False),
        (pytest.approx(4), True),
        (pytest.approx(7000 / 3400 / 2), False),
        (3400.0, True),
    ]


def test_what_was_not_measured_is_no_verdict() -> None:
    assert all(row["seen"] is row["met"] is None for row in gpu.judge({}))
    nothing = {"kernels": {"metadata": {"cases": {}}, "results": []}, "step": document(pair=1.0)}
    assert [row["met"] for row in gpu.judge(nothing)] == [None] * 5 + [False]


def test_the_rows_that_goals_name_are_those_of_the_benchmarks() -> None:
    """A misspelt row would be no verdict for ever; Triton's are made where there is a GPU alone."""
    views = (ROOT / "bench" / "kernel_views.py").read_text()
    assert 'ours("triton-bf16", "triton"' in views
    assert 'f"pair_view/fastsc-{name}"' in views
    assert '"kornia-compiled"' in views
    pooled = (ROOT / "bench" / "kernel_ds.py").read_text()
    assert 'f"pool_ds/{kind}-{name}"' in pooled
    assert '{"separate": plain}' in pooled


def test_parts_fit_the_budget(tmp_path: Path) -> None:
    made = gpu.parts(False, tmp_path, tmp_path)
    assert sum(part.limit_s for part in made) <= gpu.BUDGET_S < 9 * 60
    assert [part.name for part in made] == ["tests", "kernels", "step", "handover", "train"]
    assert gpu.TESTS == ["tests/fastsc/training/test_on_gpu.py", "tests/kernels/test_on_gpu.py"]


def test_a_part_that_fails_or_hangs_is_a_line(tmp_path: Path) -> None:
    code = "import sys; print('so far'); sys.exit(3)"
    failed = gpu.run(gpu.Part("a", [sys.executable, "-c", code], 60), tmp_path, True, 60)
    assert (failed["state"], failed["said"]) == ("failed (3)", "so far")
    code = "import time; print('so far', flush=True); time.sleep(60)"
    hung = gpu.run(gpu.Part("b", [sys.executable, "-c", code], 3), tmp_path, True, 60)
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
