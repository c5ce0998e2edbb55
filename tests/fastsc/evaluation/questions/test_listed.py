"""What --perturb lists: measured as the kernels do it by hand, and as training validates it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastsc.evaluation.questions.continuity.question import Continuity, continuity
from fastsc.evaluation.report.words import change_text, strength_text
from fastsc.kernels.perturbations import Change, perturb_bytes
from fastsc.models.representation import Represented
from fastsc.pipelines import Pipeline
from fastsc.training.validate import validate
from tests.fastsc.evaluation import tiny

LISTED = ("exposure=1", "posterize=4", "jpeg=50", "blur", "tests.pipelines.perturb_cases:darker",
          "posterize=2", "noise=0", "grayscale=0.5")  # fmt: skip


def made(folder: Path, perturb: tuple[str, ...] = LISTED) -> Pipeline:
    rng = np.random.default_rng(0)
    return tiny.loader(folder, {"a": tiny.noise(rng, 9)}, perturb=perturb)


def test_curves_and_radii_are_those_of_the_kernels(tmp_path: Path) -> None:
    loader, model = made(tmp_path), tiny.flat(scale=3.0)
    answer = continuity(model, loader, n=None, levels=(0.5, 1))
    x = torch.cat([batch.images.clone() for batch in loader.decoded(loader.index.usable)])

    def features(images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float().flatten(1) / 255

    def predicted(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            best: torch.Tensor = model.net(images.permute(0, 3, 1, 2) / 255).argmax(1)
        return best

    def changed(name: str, amount: float) -> torch.Tensor:
        return perturb_bytes(x, [Change(name, np.full(9, amount))])

    columns = answer.tables["curves"].columns
    for place, name, ends in (
        ("exposure/0.5", "exposure", (-0.5, 0.5)),
        ("exposure/1", "exposure", (-1.0, 1.0)),
        ("posterize/4", "posterize", (4.0,)),
        ("posterize-2/1", "posterize", (1.0,)),
        ("jpeg/25", "jpeg", (25.0,)),
        ("grayscale/1", "grayscale", (1.0,)),
    ):
        moved = [(features(changed(name, end)) - features(x)).norm(dim=1) for end in ends]
        expected = torch.stack(moved).mean(0).numpy()
        np.testing.assert_allclose(columns[f"moved/{place}"], expected, rtol=1e-4)
    assert not any("noise" in name for name in columns), "of strength 0"
    assert f"flips/{LISTED[4]}/1" in answer.estimates

    before, radius = predicted(x), answer.tables["radius"].columns
    flips = torch.stack([predicted(changed("posterize", a)) != before for a in range(8)])
    first = np.where(flips.any(0), flips.int().argmax(0), np.inf)
    assert np.array_equal(radius["posterize/up"], first)
    assert "posterize/down" not in radius
    for row in range(9):
        if np.isfinite(radius["exposure/up"][row]):
            out = predicted(changed("exposure", radius["exposure/up"][row]))[row]
            assert out != before[row]
    assert (
        radius["exposure/either"] == np.minimum(radius["exposure/up"], radius["exposure/down"])
    ).all()
    assert answer.ranges["posterize-2"] == (0, 7)


def test_all_of_it_is_what_training_validates(tmp_path: Path) -> None:
    from fastsc.evaluation.models.classifier import Classifier, Preprocessing
    from fastsc.models.build import build_model

    loader = made(tmp_path)
    torch.manual_seed(0)
    model = build_model("fastsc:resnet8w4", 2, "cifar", tiny.SIDE)
    classifier = Classifier(model.net, "small", Preprocessing(tiny.SIDE, tiny.SIDE))
    answer = continuity(classifier, loader, n=2, n_profile=2)
    oracle = validate(Represented(model, "features"), loader, "l2")
    assert oracle is not None
    assert answer["ds_relative/listed"].value == pytest.approx(oracle.ds_relative, rel=1e-5)
    # The colors' own figures are what they are without a list.
    for_itself = continuity(classifier, made(tmp_path, ()), n=2, n_profile=2)
    names = list(for_itself.estimates)
    assert [name for name in answer.estimates if name in names] == names
    assert all(
        np.array_equal(
            [answer[n].value, answer[n].low], [for_itself[n].value, for_itself[n].low], True
        )
        for n in names
    )
    assert isinstance(answer, Continuity)


@pytest.mark.parametrize(
    ("kind", "amount", "text", "strength"),
    [
        ("jpeg", 77, "quality 23", "quality 23"),
        ("blur-2", 2.104, "2.10 px", "2.104 px"),
        ("gamma", 1, "exponent 2.00", "2^±1"),
        ("exposure", 1.25, "+1.25 stops", "±1.25 stops"),
        ("temperature", 40, "+40 mired", "±40 mired"),
        ("sharpness", 0.5, "+50 %", "±50 %"),
        ("noise", 12, "12.0/255", "12/255"),
        ("posterize", 3, "3 bits", "3 bits"),
    ],
)
def test_amounts_in_words(kind: str, amount: float, text: str, strength: str) -> None:
    assert change_text(kind, amount).replace("\u00a0", " ") == text
    assert strength_text(kind, amount).replace("\u00a0", " ") == strength
