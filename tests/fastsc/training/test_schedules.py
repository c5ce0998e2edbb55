"""Alpha, resolutions, recipes and collapse against computations written out a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsc.config import DataConfig, MethodConfig
from fastsc.training.alpha import Alpha
from fastsc.training.collapse import CollapseWatch, effective_rank, spread
from fastsc.training.schedules import resolution_at, resolutions


def test_alpha_rises_over_its_warmup() -> None:
    config = MethodConfig(alpha=3.0, alpha_warmup_epochs=2.0)
    assert [Alpha(config, 5, 4).alpha(s) for s in range(12)] == pytest.approx(
        [0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0, 3.0, 3.0]
    )
    assert Alpha(MethodConfig(alpha=3.0, alpha_warmup_epochs=0), 5, 4).alpha(0) == 3.0


def test_alpha_rises_over_the_whole_run_unless_told_otherwise() -> None:
    config = MethodConfig(alpha=3.0)
    assert [Alpha(config, 5, 4).alpha(s) for s in range(20)] == pytest.approx(
        [3.0 * (s + 1) / 20 for s in range(20)]
    )
    assert Alpha(config, 5, 4).alpha(19) == 3.0


@pytest.mark.parametrize(("first", "last", "epochs"), [(11, 13, 16), (65, 76, 88), (0, 8, 10)])
@pytest.mark.parametrize(("low", "high"), [(160, 192), (128, 224), (100, 110)])
def test_resolutions_are_the_nearest_multiples_of_32(
    first: int, last: int, epochs: int, low: int, high: int
) -> None:
    config = DataConfig(resolution=high, min_resolution=low, resolution_ramp=(first, last))
    for epoch in range(epochs):
        line = np.interp(epoch, [first, last], [low, high])
        if epoch <= first or epoch >= last:
            assert resolution_at(epoch, config) == (low if epoch <= first else high)
        else:
            nearest = int(np.round(line / 32) * 32)
            assert resolution_at(epoch, config) == np.clip(nearest, low, high)
    sides = [resolution_at(epoch, config) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert resolutions(config, epochs) == sorted(set(sides))
    assert len(set(sides)) <= 5, "few sizes: each is a graph of its own"


def test_one_resolution_without_a_plan() -> None:
    assert resolutions(DataConfig(resolution=224), 90) == [224]


def test_effective_rank_is_that_of_the_singular_values() -> None:
    torch.manual_seed(0)
    for n, d in ((20, 7), (7, 20)):
        x = torch.randn(n, d)
        singular = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False)
        p = singular / singular.sum()
        entropy = -sum(q * math.log(q) for q in p if q > 1e-12)
        assert effective_rank(x) == pytest.approx(math.exp(entropy), rel=1e-4)
    line = torch.arange(9.0)[:, None] * torch.ones(1, 4)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.ones(5, 4)) == 1.0
    assert effective_rank(torch.eye(5)) == pytest.approx(4.0)


def test_spread_of_what_cannot_be_measured() -> None:
    assert all(math.isnan(x) for x in spread(torch.ones(1, 3)))
    assert all(math.isnan(x) for x in spread(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).between == 5.0


def test_collapse_is_warned_of_once_under_a_tenth_of_the_maximum() -> None:
    watch = CollapseWatch()

    def figures(between: float, effective_rank: float, loss: float = 1.0) -> dict[str, float]:
        return {"loss": loss, "between": between, "effective_rank": effective_rank}

    assert watch.observe(figures(2.0, 30.0)) is None
    assert watch.observe(figures(math.nan, math.nan)) is None
    assert watch.observe({"loss": 1.0}) is None
    assert watch.observe(figures(1e-3, 1.0, loss=math.inf)) is None, "of another watch"
    assert watch.observe(figures(10.0, 20.0)) is None
    assert watch.observe(figures(1.01, 3.01)) is None
    warning = watch.observe(figures(0.99, 5.0))
    assert warning is not None
    assert "distance between images is 0.99, 10 at its best" in warning
    assert "rank" not in warning
    assert watch.observe(figures(0.5, 2.0)) is None, "said already"
    again = CollapseWatch()
    again.load_state_dict(watch.state_dict())
    assert again.observe(figures(0.5, 2.0)) is None
    assert again.observe(figures(5.0, 20.0)) is None
    assert again.observe(figures(5.0, 2.9)) is not None, "it had recovered"
