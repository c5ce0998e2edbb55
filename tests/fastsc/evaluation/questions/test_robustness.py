"""Robustness against closed forms of linear models, and signs of gradients that are masked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.questions.robustness import question as module
from fastsc.evaluation.questions.robustness.attacks import Attack
from fastsc.evaluation.questions.robustness.masking import signs
from fastsc.evaluation.questions.robustness.question import (
    ATTACKS,
    Robustness,
    levels_of,
    robustness,
)
from fastsc.pipelines import Pipeline
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import MEAN, STD, needs_library
from tests.fastsc.evaluation.questions.robustness_cases import (
    FEW,
    N,
    Quantized,
    asked,
    linear,
    loader,
    no_search,
    noisy,
    predicted,
)

pytestmark = pytest.mark.heavy

__all__ = ["no_search", "noisy"]  # fixtures

INF = np.inf


def columns(answer: Robustness, table: str) -> Mapping[str, NDArray[Any]]:
    return answer.tables[table].columns


@needs_library
def test_linear_model_in_closed_form(noisy: Pipeline) -> None:
    model = linear()
    linear_layer = model.net[1]
    weight = (linear_layer.weight[1] - linear_layer.weight[0]).detach().double().numpy()
    weight = (weight.reshape(3, -1) / np.array(STD)[:, None]).ravel()
    x = tiny.decoded(noisy) - np.array(MEAN)[:, None, None]
    lead = np.abs(x.reshape(N, -1) @ weight)
    least = 255 * lead / np.abs(weight).sum()
    rms = 255 * lead / np.linalg.norm(weight) / np.sqrt(len(weight))
    levels = tuple(float(x) for x in np.quantile(least[1:], (0.2, 0.5, 0.8)))
    l2 = tuple(float(x) for x in np.quantile(rms[1:], (0.2, 0.5, 0.8)))
    attacks = (
        Attack("fgsm", "linf", levels),
        Attack("pgd", "linf", levels, tries=2),
        Attack("pgd", "l2", l2, tries=2),
    )
    found = asked(model, noisy, attacks=attacks)
    assert found["accuracy/clean"].value == (N - 1) / N
    for name, norm, at, exact in (
        ("fgsm", "linf", levels, least),
        ("pgd", "linf", levels, least),
        ("worst", "linf", levels, least),
        ("pgd", "l2", l2, rms),
        ("worst", "l2", l2, rms),
    ):
        shares = []
        for level in at:
            assert np.abs(exact - level).min() > 0.03 * level  # nobody stands on the boundary
            right = exact > level
            right[0] = False
            shares.append(right.mean())
            estimate = found[f"accuracy/{name}/{norm}/{level:g}"]
            assert estimate.value == right.mean(), (name, norm, level)
            assert (estimate.n, estimate.method) == (N, "Wilson")
            assert (
                columns(found, norm)[f"{name}/{level:g}"].tolist() == right.astype(float).tolist()
            )
        assert len(set(shares)) == 3
    assert found.masking == ()


@needs_library
def test_each_attack_by_itself_and_the_worst_of_all(noisy: Pipeline) -> None:
    found = asked(linear(0.5), noisy)
    linf = columns(found, "linf")
    least = {name: linf[f"{name}/least"] for name in ("fgsm", "pgd", "square", "noise")}
    assert all(one[0] == 0 for one in least.values())  # it is wrong unchanged
    assert np.array_equal(linf["worst/least"], np.min(list(least.values()), axis=0))
    assert levels_of(FEW, "linf") == (1.0, 4.0, 64.0)
    for name, levels in (("worst", (1, 4, 64)), ("square", (4,)), ("noise", (1, 4, 64))):
        for level in levels:
            expected = (linf[f"{name}/least"] > level).astype(float)
            assert np.array_equal(linf[f"{name}/{level}"], expected)
    assert "square/1" not in linf
    assert (linf["noise/4"] >= linf["pgd/4"]).all()
    assert linf["noise/4"].sum() > linf["pgd/4"].sum()
    assert found["accuracy/worst/linf/64"].value == 0
    assert found.masking == ()


@needs_library
def test_larger_balls_contain_what_was_found(noisy: Pipeline) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    found = asked(tiny.classifier(net), noisy, attacks=ATTACKS)
    for attack in ATTACKS:
        names = [f"accuracy/{attack.key}/{level:g}" for level in attack.levels]
        values = [found["accuracy/clean"].value, *(found[name].value for name in names)]
        assert values == sorted(values, reverse=True)
        for level in attack.levels:
            worst = found[f"accuracy/worst/{attack.norm}/{level:g}"].value
            assert worst <= found[f"accuracy/{attack.key}/{level:g}"].value
    assert found["accuracy/pgd/linf/64"].value == 0
    assert len({m.name for m in found.measures}) == len(found.measures)


@needs_library
def test_masked_gradients_are_flagged_and_honest_ones_are_not(noisy: Pipeline) -> None:
    honest = linear(0.5)
    labels = predicted(honest, noisy)
    assert robustness(honest, noisy, labels=labels, attacks=ATTACKS).masking == ()
    masked = tiny.classifier(Quantized(honest.net))
    found = robustness(masked, noisy, labels=labels, attacks=ATTACKS)
    assert len(found.masking) >= 3
    assert found.masking[0] == f"the gradient of the loss is exactly zero at {N} of {N} images"
    assert any(said.startswith("Square, which uses no gradients") for said in found.masking)
    assert any(said.startswith("random noise fools as many") for said in found.masking) or (
        found["accuracy/pgd/linf/8"].value > 0.8
    )


def test_signs_of_masking_one_by_one() -> None:
    levels = (2.0, 8.0, 64.0)
    attacks = (
        Attack("fgsm", "linf", levels),
        Attack("pgd", "linf", levels),
        Attack("square", "linf", levels[:2]),
        Attack("noise", "linf", levels),
    )
    there = np.ones(10, bool)

    def said(gradient: NDArray[np.bool_] = there, **least: list[float]) -> tuple[str, ...]:
        usual: dict[str, list[float]] = {
            "fgsm": [0, 2, 8, 8, 8, 64, 64, 64, INF, INF],
            "pgd": [0, 2, 2, 2, 2, 8, 8, 8, 8, 64],
            "square": [0, 8, 8, 8, 8, INF, INF, INF, INF, INF],
            "noise": [0, 64, 64, 64, 64, 64, 64, 64, 64, 64],
        }
        found = {f"{key}/linf": np.array(x, float) for key, x in (usual | least).items()}
        return signs(attacks, found, gradient)

    assert said() == ()
    one, two = there.copy(), there.copy()
    one[3] = two[3] = two[4] = False
    assert said(one) == ()  # one image is chance
    assert said(two) == ("the gradient of the loss is exactly zero at 2 of 10 images",)
    (square_wins,) = said(square=[0, 2, 2, 2, 2, 2, 2, 8, 8, INF])
    assert square_wins == (
        "Square, which uses no gradients, fools more images than PGD does at 2/255: 6 and 4 of 9"
    )
    assert said(square=[0, 2, 2, 2, 2, 2, 8, 8, 8, INF]) == ()  # by one image
    (fgsm_wins,) = said(fgsm=[0, 2, 2, 2, 2, 2, 2, 2, 8, 8])
    assert fgsm_wins == (
        "FGSM, a single step, fools more images than PGD does at 2/255: 7 and 4 of 9"
    )
    (noise_wins,) = said(noise=[0, 2, 2, 2, 2, 64, 64, 64, 64, 64])
    assert noise_wins == ("random noise fools as many images as PGD does at 2/255: 4 and 4 of 9")
    (left,) = said(pgd=[0, 2, 2, 2, 2, 8, 8, 8, INF, INF])
    assert left == (
        "PGD leaves 2 of 9 images right at 64/255, where hardly anything of a picture has to be "
        "left"
    )
    assert said(pgd=[0, 2, 2, 2, 2, 8, 8, 8, 8, INF]) == ()
    # A model that nothing but a large change fools is no sign of anything.
    robust = [0, *[64.0] * 9]
    never = [0, *[INF] * 9]
    assert said(pgd=robust, fgsm=robust, square=never, noise=never) == ()
    assert signs((), {}, there) == ()


@needs_library
def test_neither_batches_nor_a_cache_change_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small image has a larger part: 4 of these.
    monkeypatch.setattr(module, "PART", 0.5)
    cache = tiny.Kept()
    whole = asked(linear(), loader(tmp_path, batch_size=4), cache=cache)
    expected = [
        f"{part}-{at}"
        for part in ("unchanged", "fgsm-linf", "pgd-linf", "square-linf", "noise-linf", "pgd-l2")
        for at in range(3)
    ]
    assert cache.computed == expected
    again = asked(linear(), loader(tmp_path, batch_size=4), cache=cache)
    assert cache.computed == expected
    other = asked(linear(), loader(tmp_path, batch_size=2))
    half = asked(linear(), loader(tmp_path, batch_size=3, dtype=torch.bfloat16))
    for found in (again, other, half):
        for name, table in whole.tables.items():
            assert np.array_equal(found.tables[name].index, table.index)
            for column, values in table.columns.items():
                assert np.array_equal(columns(found, name)[column], values), (name, column)
        assert [a.index for a in found.adversaries] == [a.index for a in whole.adversaries]
    assert cache.settings["pgd-linf-1"]["images"] == [4, 5, 6, 7]


@needs_library
def test_a_seed_chooses_images_and_draws(noisy: Pipeline) -> None:
    labels = predicted(linear(), noisy)
    labels[2] = -1
    tables = [
        robustness(linear(), noisy, labels=labels, attacks=FEW, n=5, seed=seed).tables["linf"]
        for seed in (0, 0, 1)
    ]
    first, same, other = (table.index.tolist() for table in tables)
    assert first == same != other
    assert all(2 not in table.index for table in tables)
    for name, column in tables[0].columns.items():
        assert np.array_equal(tables[1].columns[name], column)


@needs_library
def test_what_is_shown(noisy: Pipeline) -> None:
    model = linear()
    found = asked(model, noisy)
    least = columns(found, "linf")["pgd/least"]
    x = torch.from_numpy(tiny.decoded(noisy)).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    labels = predicted(model, noisy)
    assert len(found.adversaries) == module.SHOWN
    assert [a.level for a in found.adversaries] == sorted(least[least > 0])[: module.SHOWN]
    for one in found.adversaries:
        assert one.level == least[one.index]
        assert np.abs(one.change).max() * 255 <= one.level * 1.001
        changed = x[one.index] + torch.from_numpy(one.change).permute(2, 0, 1)
        after = int(model(((changed - mean) / std)[None])[1].argmax())
        assert after != labels[one.index]
        before = rf"class {labels[one.index]} ("
        assert one.lines[0].startswith(before)
        assert f"→ class {after} (" in one.lines[0]
    # Right unchanged, wrong in the worst colors: even rows of the stub, but for the first.
    assert [example.index for example in found.examples] == [8, 6, 4, 2]
    assert found.examples[0].factors == (1.4, 0.6, 1.2, 0.1)
    assert "by 9 in logits" in found.examples[0].lines[0]
    assert found["photometric/worst"].value == pytest.approx(4 / 9)
    assert found["photometric/random"].value == pytest.approx(0.5)
    statistics = {measure.name: measure.statistic for measure in found.measures}
    assert statistics["photometric/random"] == "rate"  # where all are right, the next may not be


def test_nothing_is_known_to_be_right(noisy: Pipeline) -> None:
    cache = tiny.Kept()
    with pytest.raises(UserError, match="robustness: what is right is known of no image in "):
        robustness(linear(), noisy, labels=np.full(N, -1), cache=cache)
    assert cache.computed == []


def test_a_missing_scipy_is_known_before_anything_is_asked(
    noisy: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.cli.packages.installed", lambda name: name != "scipy")
    with pytest.raises(UserError, match=r"^robustness: .*pip install scipy"):
        module.right_images(noisy, noisy.index.targets)
