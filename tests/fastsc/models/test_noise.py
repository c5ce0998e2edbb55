"""Both views of an image share what a network draws: module by module, and call by call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fastsc import SharedDraws
from fastsc.models.noise import share_masks
from fastsc.models.views import Views

pytestmark = pytest.mark.heavy

N, M = 6, 4  # clean and perturbed rows


def drop_path() -> nn.Module:
    return pytest.importorskip("timm").layers.DropPath(0.5)


def patches(indices: bool) -> nn.Module:
    layers = pytest.importorskip("timm").layers
    kind = layers.PatchDropoutWithIndices if indices else layers.PatchDropout
    module: nn.Module = kind(0.5, num_prefix_tokens=2)
    return module


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (lambda: nn.Dropout(0.5), (5, 3)),
    "dropout in place": (lambda: nn.Dropout(0.5, inplace=True), (5, 3)),
    "dropout 1d": (lambda: nn.Dropout1d(0.5), (16, 3)),
    "dropout 2d": (lambda: nn.Dropout2d(0.5), (16, 3, 3)),
    "dropout 3d": (lambda: nn.Dropout3d(0.5), (16, 2, 2, 2)),
    "drop path": (drop_path, (4, 3)),
    "depth": (lambda: torchvision.ops.StochasticDepth(0.5, "row"), (4, 3)),
    "depth of a batch": (lambda: torchvision.ops.StochasticDepth(0.5, "batch"), (4, 3)),
    "patches": (lambda: patches(False), (12, 3)),
    "patches and indices": (lambda: patches(True), (12, 3)),
}


def tensor(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_hands_its_mask_on(name: str, windows: int) -> None:
    make, shape = MODULES[name]
    views, net = Views(N, N + M), nn.Sequential(make())
    assert share_masks(net, views) == 1
    clean = torch.rand(N * windows, *shape) + 1
    both = torch.cat([clean, clean[: M * windows]])
    torch.manual_seed(1)
    found = net(both.clone())
    torch.manual_seed(1)
    wanted = make()(clean.clone())  # the library's own
    assert torch.equal(tensor(found)[: N * windows], tensor(wanted))
    assert torch.equal(tensor(found)[N * windows :], tensor(wanted)[: M * windows])
    if isinstance(wanted, tuple):
        assert torch.equal(found[1], torch.cat([wanted[1], wanted[1][: M * windows]]))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_the_librarys_where_rows_are_of_one_kind(name: str) -> None:
    make, shape = MODULES[name]
    x = torch.rand(N, *shape) + 1
    for views, training in (
        (Views(), True),
        (Views(N, N), True),
        (Views(2, 4), True),
        (Views(2, N), False),
    ):
        net = nn.Sequential(make())
        share_masks(net, views)
        net.train(training)
        rows = x if views.n_rows != 4 else x[:5]
        torch.manual_seed(1)
        found = net(rows.clone())
        torch.manual_seed(1)
        assert torch.equal(tensor(found), tensor(make().train(training)(rows.clone())))


def test_names_state_and_hooks_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    seen: list[int] = []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    names = list(net.state_dict())
    share_masks(net, Views(1, 2))
    assert isinstance(net[1], nn.Dropout)
    assert list(net.state_dict()) == names
    net(torch.ones(2, 2))
    assert seen == [1]


def attention(x: Tensor) -> Tensor:
    heads = x.view(len(x), 2, 5, 3)
    return functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)


def multi_head(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    module = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True).train()
    tokens = x.view(len(x), 5, 6)
    out: Tensor = module(tokens, tokens, tokens, need_weights=False)[0]
    return out


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: functional.dropout(x, 0.5),
    "dropout2d": lambda x: functional.dropout2d(x.view(len(x), 10, 3, 1), 0.5),
    "alpha dropout": lambda x: functional.alpha_dropout(x, 0.5, training=True),
    "gumbel": lambda x: functional.gumbel_softmax(x),
    "noise": lambda x: x + torch.randn_like(x),
    "rand": lambda x: x * (torch.rand(len(x), 1) > 0.5),
    "attention": attention,
    "multi-head attention": multi_head,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_draws_once_for_both_views(name: str) -> None:
    function = FUNCTIONS[name]
    clean, perturbed = torch.rand(N, 30) + 1, torch.rand(M, 30) + 2
    both = torch.cat([clean, perturbed]).requires_grad_()
    # The oracle: perturbed rows in the clean ones' places, with the same numbers drawn.
    swapped = torch.cat([perturbed, clean[M:], perturbed]).requires_grad_()
    torch.manual_seed(0)
    with SharedDraws(N, M) as draws:
        out = function(both)
    assert draws.n_shared > 0
    torch.manual_seed(0)
    of_clean = function(both.detach())
    torch.manual_seed(0)
    of_perturbed = function(swapped)
    torch.testing.assert_close(out[:N], of_clean[:N], rtol=0, atol=1e-6)
    torch.testing.assert_close(out[N:], of_perturbed[:M], rtol=0, atol=1e-6)
    differs = (of_perturbed[N:] - of_perturbed[:M]).abs().max()
    assert differs > 1e-3, "nothing is drawn"
    out[N:].square().sum().backward()
    of_perturbed[:M].square().sum().backward()
    assert both.grad is not None
    assert swapped.grad is not None
    torch.testing.assert_close(both.grad[N:], swapped.grad[:M], rtol=1e-5, atol=1e-5)


def test_the_fused_dropout_of_gpus_has_its_mask_shared() -> None:
    x = torch.rand(2 * N, 8) + 1
    with SharedDraws(N):
        out, mask = torch.ops.aten.native_dropout(x, 0.5, True)
    assert torch.equal(mask[N:], mask[:N])
    assert torch.equal(out, x * mask * 2)


def test_draws_of_other_shapes_are_left_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(7), torch.rand(()), torch.rand(0)
    torch.manual_seed(0)
    with SharedDraws(2) as draws:
        found = torch.rand(7), torch.rand(()), torch.rand(0)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert draws.n_shared == 0
    for n, m in ((2, 3), (2, 0), (0, 0)):
        with pytest.raises(ValueError, match="perturbed views"):
            SharedDraws(n, m)


def test_modules_within_shared_draws_give_each_image_its_own_mask() -> None:
    """A module's draw for n windows each of n images has as many rows as a draw for both views."""
    views, net = Views(4, 8), nn.Sequential(nn.Dropout(0.5))
    share_masks(net, views)
    with SharedDraws(4) as draws:
        masks = net(torch.ones(16, 64)).view(8, 2, 64)
    assert draws.n_shared == 0
    assert torch.equal(masks[:4], masks[4:])
    assert len({tuple(mask.flatten().tolist()) for mask in masks[:4]}) == 4


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_one_graph_with_the_rest(name: str) -> None:
    """As --compile wants it; by dynamo's tracing alone, which is quick."""
    make, shape = MODULES[name]
    views, net = Views(N, N + M), nn.Sequential(make())
    share_masks(net, views)
    clean = torch.rand(N, *shape) + 1
    both = torch.cat([clean, clean[:M]])
    torch.manual_seed(1)
    wanted = tensor(net(both.clone()))
    torch.manual_seed(1)
    torch._dynamo.reset()  # it stops compiling after eight models in one process
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    found = tensor(compiled(both.clone()))
    torch._dynamo.reset()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "depth of a batch"])
def test_nothing_is_kept_where_nothing_is_dropped(name: str) -> None:
    make, shape = MODULES[name]
    net = nn.Sequential(make())
    for rate in ("p", "drop_prob", "prob"):
        if hasattr(net[0], rate):
            setattr(net[0], rate, 0.0)
    share_masks(net, Views(2, 4))
    x = torch.rand(4, *shape)
    assert tensor(net(x)) is x or torch.equal(tensor(net(x)), x)


def test_a_network_can_be_pickled_and_copied_whole() -> None:
    net = nn.Sequential(*(make() for make, _ in MODULES.values()))
    share_masks(net, Views(N, N + M))
    for twin in (
        pickle.loads(pickle.dumps(net)),  # noqa: S301, just written
        copy.deepcopy(net),
    ):
        assert [type(one) for one in twin] == [type(one) for one in net]
        assert {id(one.views) for one in twin} == {id(twin[0].views)}, "they share no views"
        x = torch.rand(N + M, 3)
        for one, other in zip(net, twin, strict=True):
            if isinstance(one, nn.Dropout):
                torch.manual_seed(3)
                wanted = one(x)
                torch.manual_seed(3)
                assert torch.equal(other(x), wanted)


def test_a_network_is_given_other_views() -> None:
    net = nn.Sequential(nn.Dropout(0.5))
    assert share_masks(net, Views(1, 2)) == 1
    assert share_masks(net, Views(4, 8)) == 1
    masks = net(torch.ones(8, 64))
    assert torch.equal(masks[:4], masks[4:])


def test_what_is_drawn_from_a_tensor_is_shared_where_that_is_the_same() -> None:
    """Else each view has its own; a mean or a probability for all rows is the same."""
    chances = torch.full((6, 200), 0.5)
    chances[4, :100] = torch.rand(100)
    with SharedDraws(3) as draws:
        first = torch.bernoulli(chances)
        second = torch.empty(6, 200).bernoulli_(torch.tensor(0.5))
        third = torch.normal(torch.zeros(6, 200), 1.0)
    assert draws.n_shared == 3
    for draw in (second, third):
        assert torch.equal(draw[:3], draw[3:])
    same = first[:3] == first[3:]
    assert same[[0, 2]].all()
    assert same[1, 100:].all()
    assert not same[1, :100].all()
    torch.manual_seed(0)
    with SharedDraws(3):
        drawn = torch.bernoulli(chances)
    torch.manual_seed(0)
    assert torch.equal(drawn[4, :100], torch.bernoulli(chances)[4, :100])
