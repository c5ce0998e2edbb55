"""The list of perturbations: its words, its streams, and the same pairs whoever makes them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastsc import ColorJitter
from fastsc.config.recipes import _converted
from fastsc.evaluation.run import _perturb
from fastsc.kernels.perturbations import OPERATIONS
from fastsc.pipelines import UserError, perturbing
from fastsc.pipelines.perturb_list import STRENGTHS, parse_list
from fastsc.pipelines.perturbing import amounts_of, ends_of, perturbations
from tests.pipelines.conftest import BATCH, SIZE, Make, epoch

OWN = "tests.pipelines.perturb_cases:darker"
LIST = (
    "gamma", "temperature", "exposure=2", "grayscale=0.5", "blur=8", OWN, "sharpness", "noise",
    "jpeg=90", "posterize", "blur",
)  # fmt: skip
Views = dict[int, tuple[torch.Tensor, torch.Tensor]]


def by_index(batches: list[torch.Tensor]) -> Views:
    views: Views = {}
    for batch in batches:
        views |= {
            int(i): (clean, perturbed)
            for i, clean, perturbed in zip(batch.index, batch.clean, batch.perturbed, strict=True)  # type: ignore[attr-defined]
        }
    return views


def equal(a: Views, b: Views) -> bool:
    return all(torch.equal(x, y) for i in a.keys() & b.keys() for x, y in zip(a[i], b[i]))


def test_same_pairs_for_any_batch_rank_and_resume(make: Make) -> None:
    whole = by_index(epoch(make(perturb=LIST), 1))
    for options in ({"batch_size": 6}, {"batch_size": 6, "world_size": 2, "rank": 1}):
        other = by_index(epoch(make(perturb=LIST, **options), 1))
        assert len(other) > 10
        assert equal(whole, other)
    loader = make(perturb=LIST)
    loader.set_epoch(1)
    batches = iter(loader)
    next(batches)
    resumed = make(perturb=LIST)
    resumed.load_state_dict(loader.state_dict())
    rest = by_index(list(resumed))
    assert len(rest) == len(whole) - BATCH
    assert equal(whole, rest)
    one = loader.batch_at(1, 3)
    assert one is not None
    assert equal(whole, by_index([one]))


def test_all_backends_have_the_same_amounts(make: Make) -> None:
    """The bytes before are the decoder's; what is done to them is the plan's."""
    loader = make(perturb=LIST, mean=(0, 0, 0), std=(1, 1, 1), strengths=(0, 0, 0, 0))
    plan, listed = loader.plan(2), perturbations(LIST)
    assert plan.uniforms.shape == (len(loader.index), listed.n_uniforms)
    for batch in epoch(loader, 2):
        assert batch.perturbed is not None
        bytes_ = (batch.clean * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        second = listed(bytes_, plan.uniforms[batch.index.numpy()])
        assert torch.equal((batch.perturbed * 255).round().permute(0, 2, 3, 1), second)
        assert not torch.equal(second, bytes_)


def test_clean_views_and_the_colors_factors_stay(make: Make) -> None:
    plain, listed = epoch(make()), epoch(make(perturb=("blur=20",)))
    for a, b in zip(plain, listed, strict=True):
        assert torch.equal(a.clean, b.clean)
        assert not torch.equal(a.perturbed, b.perturbed)  # type: ignore[arg-type]
    zero = [f"{name}=0" for name in STRENGTHS]
    for a, b in zip(plain, epoch(make(perturb=tuple(zero))), strict=True):
        assert torch.equal(a.perturbed, b.perturbed)  # type: ignore[arg-type]


def test_part_of_a_batch_and_validation(make: Make) -> None:
    whole = by_index(epoch(make(perturb=("noise",))))
    for batch in make(perturb=("noise",), paired_fraction=0.4):
        assert batch.perturbed is not None
        for i, view in zip(batch.index.tolist(), batch.perturbed, strict=False):
            assert torch.equal(view, whole[i][1])
    val = [by_index(epoch(make(perturb=("noise",), train=False, seed=s), s)) for s in (0, 1)]
    assert equal(*val), "validation has one key"


def test_streams_do_not_move() -> None:
    alone = perturbations(("blur",)).uniforms(3, 5, 40)
    listed = perturbations(("noise", "blur", "blur", OWN))
    table = listed.uniforms(3, 5, 40)
    assert np.array_equal(table[:, listed.columns[1]], alone)
    assert not np.array_equal(table[:, listed.columns[2]], alone)
    assert np.array_equal(table[:20], listed.uniforms(3, 5, 20))
    assert table.dtype == np.float32
    assert 0 <= table.min() < table.max() < 1
    for seed, number in ((4, 5), (3, 6)):
        assert not np.isclose(perturbations(("blur",)).uniforms(seed, number, 40), alone).any()


@pytest.mark.parametrize("name", STRENGTHS)
def test_what_a_strength_means(name: str) -> None:
    u = np.linspace(0, 1, 1001, endpoint=False)
    most = STRENGTHS[name].most
    for strength in (0.0, STRENGTHS[name].default, most):
        amounts = amounts_of(name, strength, u)
        ends = ends_of(name, strength)
        if name != "grayscale":
            assert amounts.max() <= ends[-1] < amounts.max() + 0.01 * strength + 1e-9
            assert amounts.min() == (ends[0] if len(ends) > 1 else 0)
        else:
            assert amounts.mean() == pytest.approx(strength, abs=2e-3)
        operation = OPERATIONS[name]
        assert operation.low <= min(*ends, 0) <= max(*ends, 0) <= operation.high
        assert not operation.whole or (amounts % 1 == 0).all()
    assert OPERATIONS[name].high == most
    assert not amounts_of(name, 0, u).any()


def test_of_color_jitter_and_the_loader_are_the_same(make: Make) -> None:
    strengths = (0.3, 0.2, 0.4, 0.1)
    loader = make(perturb=LIST, strengths=strengths, seed=3, mean=(0, 0, 0), std=(1, 1, 1))
    jitter = ColorJitter(*strengths, perturb=LIST)
    batch = next(iter(loader))
    x = (batch.clean * 255).round().to(torch.uint8)
    factors = jitter.keyed(batch.index, seed=3, epoch=0)
    clean, perturbed = jitter.pair(x, factors, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(clean, batch.clean)
    assert torch.equal(perturbed, batch.perturbed)  # type: ignore[arg-type]
    rounded = jitter(x, factors)
    assert (rounded.float() / 255 - perturbed).abs().max() < 1.1 / 255
    assert jitter(x).shape == x.shape
    assert jitter.sample(5).shape == (5, factors.shape[1])
    with pytest.raises(ValueError, match="images must be uint8 for perturb"):
        jitter(x.float())
    with pytest.raises(ValueError, match=rf"factors must be \({len(x)}, {factors.shape[1]}\)"):
        jitter(x, factors[:, :4])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("blurr", "no operation 'blurr'; did you mean blur?"),
        ("blur=", "the strength is no number"),
        ("blur=two", "the strength is no number"),
        ("blur=nan", "the strength must be from 0 to 20"),
        ("blur=21", "the strength must be from 0 to 20"),
        ("gamma=-1", "the strength must be from 0 to 3"),
        ("jpeg=1.5", "the strength must be a whole number"),
        ("", "no operation ''"),
        ("a b:c", "is no module:function"),
        (":f", "is no module:function"),
        (f"{OWN}=1", "has no strength"),
        ("tests.no_such:f", "ModuleNotFoundError: No module named 'tests.no_such'"),
        ("tests.pipelines.perturb_cases:absent", "AttributeError"),
        ("tests.pipelines.perturb_cases:number", "is no function"),
        ("tests.pipelines.perturb_cases:many", "uniforms must be a whole number from 0 to 128"),
    ],
)  # fmt: skip
def test_mistakes_of_the_list(word: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^--perturb ") as mistake:
        perturbations((word,))
    assert said in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", "raises RuntimeError: no stain today"),
        ("nan", r"returns torch.float32 with values that are not finite, not torch.uint8"),
        ("smaller", r"returns (2, 4, 5, 3) on cpu, not (2, 5, 5, 3) on cpu"),
        ("same", "returns its input's memory: return images.clone()"),
        ("writes", "writes to its input: work on images.clone()"),
        ("writes_by_numpy", "writes to its input"),
        ("nothing", "returns NoneType, not a torch.Tensor"),
        ("kind_of_tensor", "returns Parameter, not a torch.Tensor"),
        ("sparse", "returns torch.sparse_coo, not torch.strided"),
        ("exits", "raises SystemExit"),
        ("mixes", "an image may depend on itself and its uniforms alone"),
        ("chance", "an image may depend on itself and its uniforms alone"),
    ],
)
def test_mistakes_of_a_function(function: str, said: str) -> None:
    perturbing._own.cache_clear()
    perturbations.cache_clear()
    listed = perturbations((f"tests.pipelines.perturb_cases:{function}",))
    x = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
    for images in (x, x.repeat(2, 1, 1, 1)[2:]):
        with pytest.raises(UserError) as mistake:
            listed(images, np.empty((2, 0), np.float32))
        assert said in str(mistake.value)
        assert "\n" not in str(mistake.value)


def test_what_is_written_later_harms_nobody() -> None:
    own = perturbing.Own("m:f", lambda x, u: x.clone(), 0, "")
    x = torch.randint(1, 256, (2, 5, 5, 3), dtype=torch.uint8)
    own(x, np.empty((2, 0), np.float32))
    own.function = lambda x, u: x.zero_().clone()
    before = x.clone()
    own(x, np.empty((2, 0), np.float32))
    assert torch.equal(x, before)


@pytest.mark.parametrize("perturb", ["blur", None])
def test_a_list_that_is_none(make: Make, perturb: object) -> None:
    for build in (make, ColorJitter):
        with pytest.raises(ValueError, match="perturb must be a tuple of names"):
            build(perturb=perturb)  # type: ignore[arg-type]


def test_uniforms_of_one_and_beyond() -> None:
    assert amounts_of("posterize", 4, np.ones(1, np.float16)) == 4
    assert amounts_of("jpeg", 99, np.ones(1, np.float16)) == 99
    jitter, x = ColorJitter(perturb=("blur=3",)), torch.zeros((1, 3, 4, 4), dtype=torch.uint8)
    assert "perturb=('blur=3',)" in repr(jitter)
    for u in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            jitter(x, torch.tensor([[1, 1, 1, 0, u]]))


def test_a_recipes_word_instead_of_a_list() -> None:
    with pytest.raises(UserError, match=r"write \[blur\]"):
        _converted("perturb", "blur")


def test_an_evaluation_without_the_runs_function() -> None:
    source = SimpleNamespace(perturb=("tests.no_such:f",))
    with pytest.raises(UserError, match=r"No module.*run from its folder"):
        _perturb([source], lambda line: None)  # type: ignore[list-item]


def test_a_functions_uniforms_and_none_at_all() -> None:
    listed = perturbations(("tests.pipelines.perturb_cases:copies", OWN))
    x = torch.full((3, SIZE, SIZE, 3), 200, dtype=torch.uint8)
    uniforms = np.array([[0.5, 0], [0.25, 0], [0, 0]], np.float32)
    changed = listed(x, uniforms)
    assert changed[:, 0, 0, 0].tolist() == [100, 50, 0]
    assert len(listed(x[:0], uniforms[:0])) == 0
    labels = [entry.label for entry in parse_list(("blur", "blur=3"))]
    assert labels == ["blur", "blur-2"]


def test_another_list_may_not_go_on(make: Make) -> None:
    state = make(perturb=("blur=3", OWN)).state_dict()
    assert state["perturb"][0] == "blur=3"
    for other in ((), ("blur=2", OWN), (OWN, "blur=3"), ("blur=3", OWN, "noise")):
        with pytest.raises(UserError, match="cannot resume: what --perturb names has changed"):
            make(perturb=other).load_state_dict(state)
    changed = {**state, "perturb": ["blur=3", f"{OWN} 0123456789abcdef"]}
    with pytest.raises(UserError, match="cannot resume: what --perturb names has changed"):
        make(perturb=("blur=3", OWN)).load_state_dict(changed)
    assert "perturb" not in make().state_dict()
