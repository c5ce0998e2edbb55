"""Small repairs for the tests of training, as `tests.fastsc.runs` has trainings."""

from __future__ import annotations

from pathlib import Path

from fastsc.train import main

TINY = ["--resolution", "32", "--batch-size", "8", "--workers", "1", "--precision", "fp32"]
TINY += ["--log-every", "1", "--warmup-epochs", "0", "--crop", "none"]
MODEL = ["--model", "fastsc:resnet8w4"]


def repair(data: Path, out: Path, *more: str) -> int:
    return main(["repair", "--data", str(data), "--out", str(out), *TINY, *more])
