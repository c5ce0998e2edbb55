"""bench.train: rates out of three kinds of log, rows that cannot be run, and one training of ours.

The peers' scripts are stand-ins here that print what theirs print.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from bench import train, train_torchvision
from bench.common import Result, Skipped
from bench.train_report import Seen, goals, ratio, summaries
from bench.train_rows import TECHNIQUES, fastsc, technique_rows
from bench.train_runs import (
    Setting,
    Speeds,
    fastsc_command,
    fastsc_values,
    read_fastsc,
    read_timm,
    read_torchvision,
    shown,
)
from fastsc.config.recipes import configure

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

TOY = "--model fastsc:resnet8w4 --size 32 --batch 4 --small-batch 4 --threads 1 --workers 1".split()
SETTING = Setting("cpu", "resnet18", 112, 32, 50, 2, Path("somewhere"), 10)

TIMM_LINE = (
    "Train: 0 [{i:>4d}/{n} ( 10%)]  Loss: 5.84 (5.84)  Time: {s:.3f}s, {rate:>7.2f}/s  "
    "(0.300s,  106.67/s)  LR: 1.250e-02  Data: {data:.3f} (0.015)"
)
TORCHVISION_LINE = (
    "Epoch: [0]  [{i:2d}/{n}]  eta: 0:00:08  lr: 0.0125  img/s: 137.1  loss: 5.97 (5.96)  "
    "acc1: 0.0000 (0.2841)  acc5: 0.0000 (0.8523)  time: {s:.4f}  data: {data:.4f}"
)


def timm_log(n: int = 50) -> str:
    """Steps of 0.5 s at first, then of 0.25 and 0.15 s in turn, a fifth of it the images'; and a
    quick end."""
    times = [0.5 if i < 10 else 0.1 if i >= n - 10 else (0.25, 0.15)[i % 2] for i in range(n)]
    lines = [TIMM_LINE.format(i=i, n=n, s=s, rate=32 / s, data=s / 5) for i, s in enumerate(times)]
    return "\n".join(["Created SGD", *lines, "*** Best metric: 5.8 (epoch 0)"])


def torchvision_log() -> str:
    times = {0: 0.9, 10: 0.6, 20: 0.5, 30: 0.4, 40: 0.2}
    lines = [TORCHVISION_LINE.format(i=i, n=50, s=s, data=s / 4) for i, s in times.items()]
    return "\n".join(["Start training", *lines, "Epoch: [0] Total time: 0:00:10"])


# --- logs ----------------------------------------------------------------------------------------


def test_rates_from_our_log() -> None:
    events: list[dict[str, Any]] = [{"event": "header"}]
    rates = {1: 5.0, 10: 50.0, 20: 100.0, 30: 110.0, 40: 120.0, 50: 900.0}
    events += [
        {"event": "step", "step": step, "pairs_per_s": rate, "loader_wait": rate / 1e4}
        for step, rate in rates.items()
    ]
    log = "\n".join(json.dumps(event) for event in [*events, {"event": "end", "seconds": 9.0}])
    assert read_fastsc(log) == Speeds([100.0, 110.0, 120.0], [0.01, 0.011, 0.012])


def test_rates_from_timms_log_are_of_ten_steps() -> None:
    speeds = read_timm(timm_log(), 32)
    assert speeds.rates == pytest.approx([32 / 0.2] * 3, rel=1e-3)
    assert speeds.waits == pytest.approx([0.2] * 3, rel=1e-3)


def test_rates_from_torchvisions_log_hold_no_first_step() -> None:
    speeds = read_torchvision(torchvision_log(), 32)
    assert speeds.rates == pytest.approx([32 / 0.4, 32 / 0.2])
    assert speeds.waits == pytest.approx([0.25, 0.25])


def test_a_log_without_rates() -> None:
    for speeds in (read_fastsc(""), read_timm("", 32), read_torchvision("nothing", 32)):
        assert speeds == Speeds([], [])


# --- rows ----------------------------------------------------------------------------------------


def test_rows_of_a_training() -> None:
    row = fastsc("train/fastsc/single", SETTING, "imagenet-plain")
    seen = Seen([Speeds([100.0, 120.0], [0.01, 0.02]), Speeds([140.0], [0.03])], [16.0, 32.0])
    rows = summaries(row, seen, 10.0)
    assert rows == [
        Result("train/fastsc/single", 120.0, 110.0, 130.0, "images/s", 3),
        Result("run/fastsc/single", 75.0, 62.5, 87.5, "images/s", 2),
        Result("wait/fastsc/single", 2.0, 1.5, 2.5, "%", 3),
    ]
    assert summaries(row, Seen(failed="it fell"), 10.0) == Skipped(row.name, "it fell")
    assert summaries(row, Seen(), 10.0) == Skipped(row.name, "the 10 seconds were over")


def test_ratios_are_of_one_round_and_the_peer_is_its_faster() -> None:
    def rounds(*rates: float) -> Seen:
        return Seen([Speeds([rate], [0.01]) for rate in rates], [1.0] * len(rates))

    seen = {
        "train/fastsc/single": rounds(120, 60),
        "train/fastsc/pair": rounds(60, 33),
        "train/timm/single": rounds(100, 40),
        "train/torchvision/single": rounds(90, 50),
        "train/fastsc/single-64": Seen(failed="it fell"),
    }
    assert ratio(seen, "train/fastsc/pair", "train/fastsc/single", 2.0) == [1.0, 1.1]
    assert goals(seen) == [
        "compute: single view beside the faster of timm, torchvision: 1.20 (rounds 1.20 to 1.20)",
        "compute: pairs beside half of the single-view rate: 1.05 (rounds 1.00 to 1.10)",
        "compute: loader wait of train/fastsc/single: 1.0%",
        "compute: loader wait of train/fastsc/pair: 1.0%",
    ]


def test_every_technique_is_an_option_of_the_configuration(tmp_path: Path) -> None:
    for technique in TECHNIQUES.values():
        options = technique.options
        if "decode" in options:
            options = options | {"pipeline": "dali"}
        changed = configure("imagenet", **fastsc_values(SETTING, tmp_path, options)).flat()
        plain = configure("imagenet", **fastsc_values(SETTING, tmp_path, {})).flat()
        assert {key for key in plain if changed[key] != plain[key]} == set(options)


def test_what_needs_a_gpu_is_a_row_that_says_so() -> None:
    rows = {row.name: row for row in technique_rows(SETTING, full=False)}
    assert rows["train/fastsc/pair-graphs"] == Skipped("train/fastsc/pair-graphs", "needs a GPU")
    assert "--full" in rows["train/fastsc/pair-compile"].skipped  # type: ignore[union-attr]
    assert rows["train/fastsc/pair-half"].once  # type: ignore[union-attr]
    full = {row.name: row for row in technique_rows(SETTING, full=True)}
    assert not full["train/fastsc/pair-compile"].once  # type: ignore[union-attr]


def test_commands_are_shown_without_this_machines_folders(tmp_path: Path) -> None:
    command = fastsc_command(SETTING, tmp_path / "run", "imagenet", {"channels_last": False})
    line = shown(command, {str(tmp_path): "OUT", "somewhere": "DATA"})
    assert "fastsc.train imagenet --data DATA --val none --out OUT/run" in line
    assert line.endswith("--no-channels-last")
    assert shown(["a", "", "b c"], {}) == "a '' 'b c'"


# --- whole benchmarks ----------------------------------------------------------------------------


def run(data: Path, tmp_path: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    file = tmp_path / "results.json"
    status = train.main(["--data", str(data), "--rounds", "1", "--json", str(file), *TOY, *words])
    return status, {row["name"]: row for row in json.loads(file.read_text())["results"]}


def test_a_training_of_ours(image_folder: Path, tmp_path: Path) -> None:
    words = ["--only", "fastsc/pair", "train/timm/single", "torchvision/single-64"]
    status, rows = run(image_folder, tmp_path, *words)
    assert status == 0
    assert rows["train/fastsc/pair"]["n"] == 3
    assert rows["train/fastsc/pair"]["median"] > rows["run/fastsc/pair"]["median"] > 0
    assert 0 <= rows["wait/fastsc/pair"]["median"] <= 100
    assert "--timm-script FILE" in rows["train/timm/single"]["skipped"]
    assert "github.com/pytorch/vision" in rows["train/torchvision/single-64"]["skipped"]


def test_peers_by_their_scripts(image_folder: Path, tmp_path: Path) -> None:
    timm, torchvision = tmp_path / "timm.py", tmp_path / "torchvision.py"
    timm.write_text(f"import sys\nassert '--channels-last' in sys.argv\nprint({timm_log()!r})\n")
    torchvision.write_text(
        "import argparse\n"
        "def get_args_parser():\n"
        "    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('--device')\n"
        "    parser.add_argument('--amp', action='store_true')\n"
        "    parser.add_argument('--rest', nargs='*')\n"
        "    parser.parse_args = lambda words: parser.parse_known_args(words)[0]\n"
        "    return parser\n"
        "def main(options):\n"
        f"    print({torchvision_log()!r})\n"
    )
    words = ["--timm-script", str(timm), "--torchvision-script", str(torchvision)]
    status, rows = run(
        image_folder, tmp_path, *words, "--only", "timm/single", "torchvision/single"
    )
    assert status == 0
    assert rows["train/timm/single"]["median"] == pytest.approx(32 / 0.2, rel=1e-3)
    assert rows["train/torchvision/single"]["n"] == 2
    commands = json.loads((tmp_path / "results.json").read_text())["metadata"]["commands"]
    assert commands["train/timm/single"].startswith("python TIMM/train.py DATA --val-split ''")
    assert str(tmp_path) not in json.dumps(commands)


def test_a_training_that_fails_is_a_row_and_the_exit_status(
    image_folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('no such model')\n")
    words = ["--timm-script", str(script), "--only", "timm/single"]
    status, rows = run(image_folder, tmp_path, *words)
    assert status == 1
    assert rows["train/timm/single"]["skipped"] == "ended with status 1: no such model"


def test_a_dry_run_prints_commands(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", str(image_folder), "--dry-run", *TOY]) == 0
    said = capsys.readouterr().out
    assert "train/fastsc/pair-accumulate\n    python -m fastsc.train imagenet --data DATA" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "40"], "--steps must be at least 50"),
        (["--only", "fastsc/triple"], "no rows train/fastsc/triple; there are fastsc/single, "),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--timm-script", "nowhere.py"], "there is no file nowhere.py"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes(
    image_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--data", str(image_folder), *TOY, *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# --- torchvision's script ------------------------------------------------------------------------


REFERENCE = """
import argparse
import torch
import torchvision

def get_args_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--amp", action="store_true")
    return parser

def evaluate(*_, **__):
    raise AssertionError("nothing is to be validated")

seen = {}

def main(options):
    net = torchvision.models.get_model("resnet18", weights=None, num_classes=3)
    seen["channels last"] = net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    small = torchvision.models.get_model("timm:test_resnet", weights=None, num_classes=3)
    seen["outputs"] = small.num_classes
    scaler = torch.cuda.amp.GradScaler() if options.amp else None
    with torch.cuda.amp.autocast(enabled=scaler is not None):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    seen["dtype"] = product.dtype
    seen["scale"] = scaler.scale(product).sum().item() if options.amp else None
    evaluate()
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"channels last": True, "dtype": torch.bfloat16, "scale": 8.0}),
        (
            ["--layout", "nchw", "--precision", "fp32"],
            {"channels last": False, "dtype": torch.float32, "scale": None},
        ),
    ],
)
def test_torchvisions_script_gets_our_dtype_and_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: dict[str, Any]
) -> None:
    pytest.importorskip("timm")
    script = tmp_path / "reference.py"
    script.write_text(REFERENCE)
    # What the script's runner changes is put back when the test is over.
    monkeypatch.setattr("torch.cuda.amp.autocast", torch.cuda.amp.autocast)
    monkeypatch.setattr("torch.cuda.amp.GradScaler", torch.cuda.amp.GradScaler)
    monkeypatch.setattr("torchvision.models.get_model", torchvision.models.get_model)
    monkeypatch.setattr("sys.path", [*sys.path])
    train_torchvision.main([str(script), "--device", "cpu", *words])
    module = sys.modules.pop("torchvision_reference")
    assert module.seen == expected | {"outputs": 3}
