"""Continuity against training's own validation, closed forms of a linear model, and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.continuity.question import (
    Continuity,
    _shares,
    continuity,
    strength_name,
)
from fastsc.loading.preprocessing import Preprocessing
from fastsc.models.build import build_model
from fastsc.models.representation import Represented
from fastsc.pipelines import Pipeline, build, keyed
from fastsc.training.validate import validate
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

STRENGTHS = (0.4, 0.4, 0.4, 0.1)
UNIT = np.sqrt(3 * tiny.SIDE**2)  # distance of two grey images whose values differ by one


@pytest.fixture
def photos(image_folder: Path) -> Pipeline:
    return build("cpu", image_folder / "train", batch_size=8, resolution=32, train=False, workers=1)


def small_net() -> Classifier:
    torch.manual_seed(0)
    net = build_model("fastsc:resnet8w8", 4, "cifar", 32).net
    return Classifier(net, "small", Preprocessing(32, 32))


def test_every_image_is_measured_as_training_validates_it(photos: Pipeline) -> None:
    torch.manual_seed(0)
    model = build_model("fastsc:resnet8w8", 4, "cifar", 32)
    oracle = validate(Represented(model, "features"), photos, "l2")
    assert oracle is not None
    found = continuity(small_net(), photos, n=2, n_profile=2)
    assert found["top1"].value == oracle.top1
    assert found["top1_perturbed"].value == oracle.top1_perturbed
    assert found["ds"].value == pytest.approx(oracle.ds, rel=1e-5)
    assert found["ds_relative"].value == pytest.approx(oracle.ds_relative, rel=1e-5)
    assert found["ds_relative"].n == oracle.n == 32


def test_features_that_turn_about_zero_have_neither_mean_nor_radial_movement() -> None:
    f = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0], [4.0, -3.0]], dtype=torch.float64)
    columns = _shares(f, f.roll(1, 0))  # each by a right angle
    assert np.allclose(columns["along_mean"], 0)
    assert np.allclose(columns["radial_square"], 0)
    assert np.allclose(columns["square"], 12.5)
    assert np.allclose(columns["moved_square"], 50)
    assert not np.any(list(_shares(0 * f, 0 * f).values()))


def test_three_grey_images_by_hand(tmp_path: Path) -> None:
    values = np.round(255 * np.array([0.2, 0.3, 0.5])) / 255
    loader = tiny.loader(tmp_path, {"a": tiny.constant(*values)}, strengths=(0.4, 0, 0, 0))
    model = tiny.flat()
    found = continuity(model, loader, n=None, levels=(0.5, 1))

    b = keyed.factors(keyed.VALIDATION_SEED, keyed.VALIDATION_EPOCH, 3, (0.4, 0, 0, 0))[:, 0]
    pairs = found.tables["pairs"].columns
    np.testing.assert_allclose(pairs["moved"], UNIT * abs(b - 1) * values, rtol=1e-4)
    # Three images in a cycle: every pair of them once.
    differences = [abs(values[i] - values[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert sorted(pairs["between"]) == pytest.approx(sorted(UNIT * np.array(differences)), rel=1e-5)
    scale = UNIT * np.mean(differences)
    assert found["ds_relative"].value == pytest.approx(pairs["moved"].mean() / scale, rel=1e-5)
    # All features lie on one line through zero.
    m = values * (1 + b) / 2
    assert found["radial_share"].value == pytest.approx(1, rel=1e-5)
    assert found["mean_share"].value == pytest.approx(m.mean() ** 2 / np.square(m).mean(), rel=1e-5)
    # Nothing is clipped, so that brightness moves an image by s·‖x‖, in either direction.
    curves = found.tables["curves"].columns
    for s in (0.2, 0.4):
        np.testing.assert_allclose(curves[f"moved/brightness/{s:g}"], UNIT * s * values, rtol=1e-4)
    assert not any(name.startswith("moved/hue") for name in curves)  # its strength is 0


def test_confidences_and_flips_are_those_of_the_logits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loader = tiny.loader(tmp_path, {"a": tiny.noise(rng, 9)}, strengths=STRENGTHS)
    model = tiny.flat(scale=3.0)
    found = continuity(model, loader, n=None, levels=(1,))
    clean, perturbed = [], []
    for batch in loader:
        assert batch.perturbed is not None
        with torch.no_grad():
            clean.append(model.net(batch.clean))
            perturbed.append(model.net(batch.perturbed))
    before, after = torch.cat(clean).softmax(1), torch.cat(perturbed).softmax(1)
    best = before.argmax(1)
    pairs = found.tables["pairs"].columns
    assert pairs["predicted"].tolist() == best.tolist()
    flipped = after.argmax(1) != best
    assert 0 < flipped.sum() < 9  # or the case shows nothing
    assert pairs["flipped"].tolist() == flipped.double().tolist()
    rows = torch.arange(9)
    change = after[rows, best] - before[rows, best]
    np.testing.assert_allclose(pairs["confidence_change"], change.numpy(), atol=1e-6)
    assert found["flips"].value == flipped.double().mean().item()
    assert found["confidence_change"].value == pytest.approx(change.mean().item(), abs=1e-6)


def test_together_walks_outward_on_the_ray_of_one_draw(tmp_path: Path) -> None:
    values = np.round(255 * np.array([0.1, 0.2, 0.3, 0.25])) / 255
    loader = tiny.loader(tmp_path, {"a": tiny.constant(*values)}, strengths=(0.2, 0, 0, 0))
    found = continuity(tiny.flat(), loader, n=None, levels=(1, 2), seed=5)
    curves = found.tables["curves"].columns
    draws = [keyed.factors(5, draw, 4, (0.2, 0, 0, 0))[:, 0] for draw in range(2)]
    moved = UNIT * values * np.mean([abs(b - 1) for b in draws], axis=0)
    np.testing.assert_allclose(curves["moved/together/1"], moved, rtol=1e-3)
    np.testing.assert_allclose(curves["moved/together/2"], 2 * moved, rtol=1e-3)


def test_brightness_stops_at_black_and_hue_at_half_a_circle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {"a": tiny.noise(rng, 3, high=60)}
    loader = tiny.loader(tmp_path, pixels, strengths=(0.8, 0, 0, 0.4))
    found = continuity(tiny.flat(), loader, n=None, levels=(2,))
    norm = np.sqrt((tiny.decoded(loader) ** 2).sum((1, 2, 3)))
    # Factors 0 and 2.6, of which the darker one is black.
    expected = (norm + 1.6 * norm) / 2
    curves = found.tables["curves"].columns
    np.testing.assert_allclose(curves["moved/brightness/1.6"], expected, rtol=1e-4)
    assert np.isfinite(curves["moved/hue/0.5"]).all()


def test_images_without_a_label_are_left_out_of_top1_alone(photos: Pipeline) -> None:
    labels = photos.index.targets.copy()
    labels[::2] = -1
    found = continuity(small_net(), photos, labels=labels, n=2, n_profile=2)
    assert (found["top1"].n, found["flips"].n) == (16, 32)
    assert set(found.tables["labelled"].index.tolist()) == set(range(1, 32, 2))
    unlabelled = continuity(small_net(), photos, labels=np.full(32, -1), n=2, n_profile=2)
    assert "top1" not in unlabelled.estimates
    assert "labelled" not in unlabelled.tables
    assert unlabelled["ds_relative"] == found["ds_relative"]


def test_what_was_kept_is_not_computed_again(photos: Pipeline) -> None:
    kept = tiny.Kept()
    first = continuity(small_net(), photos, n=4, n_profile=4, cache=kept)
    computed = list(kept.computed)
    again = continuity(small_net(), photos, n=4, n_profile=4, cache=kept)
    assert kept.computed == computed
    assert len(computed) == 1 + 5 + 4 + 1  # pairs, curves, radii, layers
    by_strength = {part for part, settings in kept.settings.items() if "strengths" in settings}
    assert {part for part in computed if not part.startswith("radius-")} == by_strength
    assert again.estimates == first.estimates
    assert again.stages == first.stages == ("conv1", "layer1", "layer2", "layer3", "representation")


def test_a_larger_n_keeps_the_images_of_a_smaller_one(photos: Pipeline) -> None:
    def chosen(n: int, seed: int) -> Continuity:
        return continuity(small_net(), photos, n=n, n_profile=2, levels=(1,), seed=seed)

    few, more = (chosen(n, 0).tables["curves"] for n in (3, 6))
    assert set(few.index) < set(more.index)
    same = more.take(few.index).columns
    assert all(
        np.allclose(few.columns[name], same[name], rtol=1e-4, atol=1e-6) for name in few.columns
    )
    assert set(chosen(3, 1).tables["curves"].index) != set(few.index)


def test_examples_are_the_images_that_moved_most(photos: Pipeline) -> None:
    found = continuity(small_net(), photos, n=2, n_profile=2)
    pairs = found.tables["pairs"]
    order = pairs.index[np.argsort(-pairs.columns["moved"])]
    assert [example.index for example in found.examples] == order[:6].tolist()
    first = found.examples[0]
    assert first.factors == pytest.approx(photos.plan().factors[first.index].tolist())
    moved = pairs.columns["moved"].max() / pairs.columns["between"].mean()
    assert f"moved by {moved:.2f} " in first.lines[0]


def test_every_measure_is_of_columns_that_are_there(photos: Pipeline) -> None:
    found = continuity(small_net(), photos, n=4, n_profile=4)
    names = [measure.name for measure in found.measures]
    assert len(set(names)) == len(names)
    assert "ds_relative/hue/0.025" in names
    assert "flips/together/2" in names
    for measure in found.measures:
        assert found.values(measure).shape == (
            len(measure.columns),
            len(found.tables[measure.table]),
        )


def test_strengths_are_named_in_the_unit_of_their_kind() -> None:
    names = [strength_name(kind, STRENGTHS, 1.5) for kind in ("contrast", "hue", "together")]
    assert names == ["0.6", "0.15", "1.5"]


def test_a_kind_without_strength_has_no_curve_and_hue_none_beyond_half_a_circle(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    loader = tiny.loader(tmp_path, {"a": tiny.noise(rng, 3)}, strengths=(0, 0.4, 0, 0.3))
    found = continuity(tiny.flat(), loader, n=None, levels=(0.5, 1, 2, 3))
    names = [measure.name for measure in found.measures]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("flips/")] == [
        *(f"flips/contrast/{s:g}" for s in (0.2, 0.4, 0.8, 1.2)),
        *(f"flips/hue/{s:g}" for s in (0.15, 0.3, 0.5)),
        *(f"flips/together/{s:g}" for s in (0.5, 1, 2, 3)),
    ]
    turned = found.tables["curves"].columns["moved/hue/0.5"]
    x = tiny.decoded(loader).transpose(0, 2, 3, 1)
    opposite = x.max(-1, keepdims=True) + x.min(-1, keepdims=True) - x  # half a circle on
    np.testing.assert_allclose(turned, np.sqrt(((opposite - x) ** 2).sum((1, 2, 3))), rtol=1e-3)


def test_a_collapsed_model_has_no_ds_relative_and_no_examples(tmp_path: Path) -> None:
    model = tiny.flat()
    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.5, 0.5, 0.5)})
    found = continuity(model, loader, n=None)
    assert np.isnan(found["ds_relative"].value)
    assert found.examples == ()


def test_answers_that_are_not_finite_are_no_figures(tmp_path: Path) -> None:
    class Dark(torch.nn.Module):
        """NaN for dark images, at which nobody looks beforehand."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3 * tiny.SIDE**2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(x.flatten(1))
            return torch.where(
                (x.mean((1, 2, 3)) == x.new_tensor(26 / 255))[:, None], torch.nan, logits
            )

    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.1, 0.5, 0.9)})
    with pytest.raises(UserError, match=r"not finite for 1 of 3 images.*--precision fp32"):
        continuity(tiny.classifier(Dark()), loader, n=None)


def test_a_forward_that_fails_on_a_batch_is_one_line(tmp_path: Path) -> None:
    class Single(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3 * tiny.SIDE**2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise KeyError("no room")
            logits: torch.Tensor = self.fc(x.flatten(1))
            return logits

    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.1, 0.5, 0.9)})
    with pytest.raises(UserError, match="model tiny fails on a batch of 3 images: KeyError"):
        continuity(tiny.classifier(Single()), loader, n=None)


def test_one_image_is_no_continuity(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.5)})
    with pytest.raises(UserError, match="needs two images"):
        continuity(tiny.flat(), loader)
