"""Runs whose views are equal: DS is zero, whatever the network draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.fastsc.distributed.test_ranks import ranked
from tests.fastsc.runs import events, run, same_weights

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

# At 32 pixels its last map is one position, whose batch norm magnifies rounding a thousand times.
EQUAL = ["--model", "efficientnet_b0", "--resolution", "96", "--batch-size", "4"]
EQUAL += ["--strengths", "0", "0", "0", "0", "--max-steps", "2", "--val", "none"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["--paired-fraction", "0.5", "--ema", "0.9"],
        ["--bn", "split", "--accumulate", "2", "--ds", "js", "--ds-at", "logits"],
    ],
    ids=" ".join,
)
def test_ds_of_equal_views_is_zero(image_folder: Path, tmp_path: Path, more: list[str]) -> None:
    assert run(image_folder, tmp_path / "run", *EQUAL, *more) == 0
    (header,) = events(tmp_path / "run", "header")
    assert header["view_noise"] < 1e-5
    assert header["features"].startswith("input of ")
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 2
    at_logits = "logits" in more  # behind the classifier's own dropout, whose mask is shared, too
    for step in steps:
        assert step["ds"] == pytest.approx(0, abs=1e-6 if not at_logits else 1e-5)
        assert step["ds_relative"] == pytest.approx(0, abs=1e-4)
    assert not events(tmp_path / "run", "warning")


def test_a_resumed_run_draws_what_it_would_have_drawn(image_folder: Path, tmp_path: Path) -> None:
    model = ["--model", "efficientnet_b0", "--batch-size", "4", "--val", "none"]
    assert run(image_folder, tmp_path / "a", *model, "--max-steps", "2") == 0
    assert run(image_folder, tmp_path / "b", *model, "--max-steps", "1") == 0
    assert run(image_folder, tmp_path / "b", *model, "--max-steps", "2", "--resume") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_over_two_ranks(image_folder: Path, tmp_path: Path) -> None:
    ranked(2, image_folder, tmp_path / "run", *EQUAL)
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 2
    for step in steps:
        assert step["ds"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["efficientnet_b0", "swin_t"])
def test_compiled(image_folder: Path, tmp_path: Path, model: str) -> None:
    words = [*EQUAL, "--model", model, "--compile"]
    assert run(image_folder, tmp_path / "run", *words) == 0
    for step in events(tmp_path / "run", "step"):
        assert step["ds"] == pytest.approx(0, abs=1e-5)


class Noisy(nn.Module):
    """A network whose noise no draw of torch's makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        if self.training:
            x = x + torch.linspace(0, 1, len(x))[:, None]
        out: Tensor = self.fc(x)
        return out


def test_noise_that_is_left_is_in_the_header_and_warned_of(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.models.build.small_model", lambda name, n: Noisy())
    words = ["--model", "fastsc:resnet8w4", "--max-steps", "1"]
    assert run(image_folder, tmp_path / "run", *words) == 0
    (header,) = events(tmp_path / "run", "header")
    assert header["view_noise"] > 0.01
    (warning,) = events(tmp_path / "run", "warning")
    assert "two equal views" in warning["reason"]
