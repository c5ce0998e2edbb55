"""The flip radius against models that flip where one can say so, and against a dense grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastsc.evaluation.questions.continuity.flip_radius import HALVINGS, RANGES, STEPS, radii
from fastsc.evaluation.views import KINDS, Viewer, one_kind
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

FINEST = STEPS * 2**HALVINGS  # steps of a direction that the search can tell apart


class Grey(nn.Module):
    """Class 1 where a function of the image's mean is positive, else class 0."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.identity = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.identity.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x.mean((1, 2, 3)))
        logits: Tensor = self.identity(torch.stack([torch.zeros_like(score), score], 1))
        return logits


def found_in(
    net: nn.Module, root: Path, *values: float, kind: str = "brightness"
) -> dict[str, list[float]]:
    loader = tiny.loader(root, {"a": tiny.constant(*values)})
    columns = radii(Viewer(tiny.classifier(net), loader), loader.index.usable, kind)
    return {name.removeprefix(f"{kind}/"): column.tolist() for name, column in columns.items()}


def test_brightness_of_a_threshold_in_closed_form(tmp_path: Path) -> None:
    values = np.round(255 * np.array([0.1, 0.2, 0.3, 0.6])) / 255
    found = found_in(Grey(lambda m: m - 0.4137), tmp_path, *values)
    up, down = 0.4137 / values[:3] - 1, 1 - 0.4137 / values[3:]
    assert found["up"][0] == np.inf  # at three times 0.1 it is still below
    # The outer end of what is left of the step: never less than the flip, at most this much more.
    for way, at, exact, span in (
        ("up", slice(1, 3), up[1:], 2.0),
        ("down", slice(3, 4), down, 1.0),
    ):
        beyond = np.array(found[way][at]) - exact
        assert (beyond > 0).all()
        assert (beyond <= span / FINEST).all()
    assert found["down"][:3] == [np.inf] * 3
    assert found["up"][3] == np.inf
    assert found["either"] == [min(pair) for pair in zip(found["up"], found["down"], strict=True)]


def test_a_prediction_that_flips_back_further_out_counts_where_it_flips_first(
    tmp_path: Path,
) -> None:
    band = Grey(lambda m: 0.1 - (m - 0.5).abs())  # class 1 between 0.4 and 0.6 alone
    value = round(255 * 0.3) / 255
    found = found_in(band, tmp_path, value, value)
    assert found["up"][0] == pytest.approx(0.4 / value - 1, abs=2.0 / FINEST)


def test_the_search_goes_to_the_ends_of_what_can_be_done() -> None:
    # Black, one grey, grey tones; hue to the opposite color, from both sides.
    assert [RANGES[kind][0] for kind in KINDS] == [0, 0, 0, -0.5]
    assert [RANGES[kind][1] for kind in KINDS] == [3, 3, 3, 0.5]


def test_what_never_flips_is_infinite(tmp_path: Path) -> None:
    found = found_in(Grey(lambda m: m - 2), tmp_path, 0.2, 0.5, kind="hue")
    assert found == {way: [np.inf, np.inf] for way in ("down", "up", "either")}


@pytest.mark.parametrize(
    "kind",
    # A factor, and the shift of the hue.
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in ("contrast", "saturation") else ())
        for kind in KINDS
    ],
)
def test_against_a_dense_grid_on_a_hundred_images(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    )
    with torch.no_grad():
        net[4].weight.mul_(20)
        net[4].bias.zero_()
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (100, 2, 2, 3)).astype(np.uint8)
    images = [image.repeat(4, 0).repeat(4, 1) for image in coarse]
    loader = tiny.loader(tmp_path, {"a": images}, batch_size=50)
    viewer, index = Viewer(tiny.classifier(net), loader), loader.index.usable
    found = radii(viewer, index, kind)
    (pixels,) = (torch.cat([batch.pixels.clone() for batch in viewer.images(index, "")]),)
    clean = viewer.respond(pixels).predicted

    unchanged = 0.0 if kind == "hue" else 1.0
    for way, end in zip(("down", "up"), RANGES[kind], strict=True):
        dense = np.full(100, np.inf)
        for step in range(FINEST, 0, -1):
            value = unchanged + (end - unchanged) * step / FINEST
            there = viewer.respond(pixels, one_kind(kind, np.float32(value), 100)).predicted
            dense[(there != clean).numpy()] = abs(end - unchanged) * step / FINEST
        ours = found[f"{kind}/{way}"]
        # The search stands on points of the grid: it can miss an island, and find nothing else.
        assert (ours >= dense - 1e-6).all()
        assert np.isfinite(dense).sum() > 5  # or the case shows nothing
        assert np.mean(np.isclose(ours, dense, rtol=0, atol=1e-6) | (ours == dense)) >= 0.95
