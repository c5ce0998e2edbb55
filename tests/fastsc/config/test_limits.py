"""Numbers beyond any run: one line with the range, at once."""

from __future__ import annotations

import time

import pytest

from fastsc import evaluate, prepare, replay, reproduce, train
from fastsc.config import DataConfig
from fastsc.training.schedules import resolution_at, resolutions

HUGE = "9" * 400
TRAIN = {
    "--strengths": ("1e30 0 0 0", "0 1e30 0 0", "nan 0 0 0", "0 0 0 inf"),
    "--warmup-epochs": ("1e308", HUGE),
    "--alpha-warmup-epochs": ("1e308",),
    "--loader-timeout": ("1e10", "inf"),
    "--rank-timeout": ("1e10",),
    "--epochs": ("1000000001", HUGE),
    "--batch-size": ("1000000000000", HUGE),
    "--accumulate": ("1000000000000",),
    "--resolution": ("1000000", HUGE),
    "--resolution-ramp": (f"0 {HUGE}", "0 1000000001"),
    "--log-every": (HUGE,),
    "--workers": ("1000000",),
    "--val-every": (HUGE,),
    "--max-steps": (HUGE,),
    "--num-classes": ("1000000000000",),
    "--checkpoint-minutes": ("1e30",),
    "--keep-checkpoints": (HUGE,),
    "--seed": (HUGE, "18446744073709551616"),
    "--lr": ("1e300",),
    "--alpha": ("1e300",),
    "--clip-grad": ("1e300",),
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option in TRAIN for value in TRAIN[option]]
)
def test_training_ends_with_2(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["imagenet", "--data", "d", option, *value.split()]
    if option == "--resolution-ramp":
        words += ["--min-resolution", "64"]
    assert train.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert option.split("-")[2] in said


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (evaluate.main, f"m --data d --out o --workers {10**6}"),
        (evaluate.main, f"m --data d --out o --batch-size {10**12}"),
        (evaluate.main, f"m --data d --out o --resolution {10**6}"),
        (evaluate.main, f"m --data d --out o --images {HUGE}"),
        (evaluate.main, f"m --data d --out o --seed {'9' * 5000}"),
        (evaluate.main, "m --data d --out o --strengths 1e30 0 0 0"),
        (evaluate.main, "m --data d --out o --strengths nan 0 0 0"),
        (prepare.main, f"beton --data d --out o --workers {10**6}"),
        (prepare.main, f"beton --data d --out o --quality {'9' * 5000}"),
        (prepare.main, f"colormnist --out o --seed {HUGE}"),
        (prepare.main, "colormnist --out o --correlation 1e30"),
        (reproduce.main, f"cifar100 --data d --out o --jobs {10**6}"),
        (reproduce.main, f"cifar100 --data d --out o --max-steps {HUGE}"),
        (reproduce.main, f"cifar100 --data d --out o --seeds {HUGE}"),
        (replay.main, f"run --step {HUGE}"),
        (replay.main, f"run --rank {HUGE}"),
        (replay.main, f"run --out {'a/' * 1500}"),
    ],
)
def test_the_other_commands_do(
    main: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    assert main(words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_sides_of_a_long_run_are_known_at_once() -> None:
    began = time.monotonic()
    config = DataConfig(resolution=224, min_resolution=64, resolution_ramp=(1_000, 2_000))
    assert resolutions(config, 10**9) == [64, 96, 128, 160, 192, 224]
    assert resolutions(config, 900) == [64]
    assert resolutions(DataConfig(), 10**9) == [224]
    for n in (1, 2, 1_001, 1_500, 2_001):
        assert resolutions(config, n) == sorted({resolution_at(e, config) for e in range(n)})
    assert time.monotonic() - began < 1
