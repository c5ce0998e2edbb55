"""Both views of an image share what the network draws: module by module, and whole networks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fastsc import SharedDraws
from fastsc.config.recipes import configure
from fastsc.distributed.ranks import Ranks
from fastsc.models.build import build_model
from fastsc.models.noise import share_masks
from fastsc.models.representation import Represented
from fastsc.models.views import Views
from fastsc.training.setup import build, view_noise
from tests.fastsc.distributed.test_ranks import ranked
from tests.fastsc.runs import events, run, same_weights

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

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


# --- networks -------------------------------------------------------------------------------------

SIX = {
    "swin_t": 32, "efficientnet_b0": 96, "inception_v3": 80, "vgg11": 32,
    "timm:ghostnet_050": 32, "timm:convit_tiny": 224,
}  # fmt: skip
# Dropout modules of a classifier, which efficientnet_b0 has, too.
BEHIND = ("inception_v3", "vgg11")
# One of each family of torchvision's that has a linear classifier, and of timm's with noise.
FAMILIES = (
    "alexnet convnext_tiny densenet121 efficientnet_v2_s googlenet maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2 timm:beit_base_patch16_224 timm:caformer_s18 "
    "timm:cait_xxs24_224 timm:coat_tiny timm:coatnet_nano_rw_224 timm:convformer_s18 "
    "timm:convmixer_768_32 timm:deit3_small_patch16_224 timm:edgenext_xx_small "
    "timm:efficientformer_l1 timm:efficientnet_lite0 timm:fastvit_t8 timm:fbnetc_100 "
    "timm:gcvit_xxtiny timm:hgnet_tiny timm:hrnet_w18_small timm:inception_v4 timm:levit_128s "
    "timm:maxvit_tiny_rw_224 timm:mixer_s32_224 timm:mobilenetv4_conv_small timm:mvitv2_tiny "
    "timm:nasnetalarge timm:pit_ti_224 timm:poolformer_s12 timm:pvt_v2_b0 timm:regnetx_002 "
    "timm:repvgg_a0 timm:rexnet_100 timm:tf_efficientnet_b0 timm:twins_svt_small "
    "timm:vit_tiny_patch16_224 timm:xcit_nano_12_p16_224 "
).split()


def built(name: str, side: int) -> Represented:
    torch.manual_seed(0)
    config = configure("imagenet", data="DIR", model=name, resolution=side, precision="fp32")
    return build(config, 10, torch.device("cpu"), Ranks())


def apart(model: nn.Module, side: int) -> float:
    """The largest difference of the features of two equal views in training, nothing shared."""
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        f, g = model.train()(torch.cat([images, images]))[0].chunk(2)
    return float((f - g).abs().max())


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param(name, side, marks=pytest.mark.slow if name in BEHIND else ())
        for name, side in SIX.items()
    ],
)
def test_equal_views_have_equal_features(name: str, side: int) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = built(name, side)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    generator = torch.random.get_rng_state()
    assert view_noise(model, side, "fp32", compiled=False) < 1e-5
    assert torch.equal(torch.random.get_rng_state(), generator)
    after = model.net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0"])
def test_their_modules_alone_share_it_as_under_compile(name: str) -> None:
    model = built(name, SIX[name])
    assert view_noise(model, SIX[name], "fp32", compiled=True) < 1e-5
    assert not model.shares_draws


def test_what_compile_cannot_undo_is_told() -> None:
    """F.dropout in front of the classifier: the features are those behind it, and differ."""
    pytest.importorskip("timm")
    model = built("timm:ghostnet_050", 32)
    assert view_noise(model, 32, "fp32", compiled=True) > 0.1
    assert view_noise(built("timm:ghostnet_050", 32), 32, "fp32", compiled=False) < 1e-5


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


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0"])
def test_the_library_alone_would_tell_equal_views_apart(name: str) -> None:
    torch.manual_seed(0)
    assert apart(build_model(name, 10, "imagenet", 32), 32) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equal_views_have_equal_features_in_every_family(name: str) -> None:
    side = 224 if name.startswith("timm:") or name in ("maxvit_t", "vit_b_32") else 64
    assert view_noise(built(name, side), side, "fp32", compiled=False) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        pytest.param("vgg11", marks=pytest.mark.slow),
        "inception_v3",
        "timm:ghostnet_050",
    ],
)
def test_features_are_taken_before_a_final_dropout(name: str) -> None:
    """A module, a module and reshaping behind it, a function."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    side = SIX.get(name, 32)
    model = built(name, side).train()
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    for module in drops[:-1]:
        module.p = 0.0
    x = torch.randn(4, 3, side, side)
    with torch.no_grad():
        one, two = model(x), model(x)
    assert torch.equal(one.features, two.features)
    assert not torch.equal(one.logits, two.logits), "there is no dropout in front of the classifier"


# --- runs -----------------------------------------------------------------------------------------

# At 32 pixels its last map is one position, whose batch norm magnifies rounding a thousand times.
EQUAL = [
    "--model",
    "efficientnet_b0",
    "--resolution",
    "96",
    "--batch-size",
    "4",
    "--strengths",
    "0",
    "0",
    "0",
    "0",
    "--max-steps",
    "3",
]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--bn", "split"],
        ["--paired-fraction", "0.5"],
        ["--accumulate", "2", "--ema", "0.9"],
        ["--ds", "js", "--ds-at", "logits"],
    ],
    ids=" ".join,
)
def test_ds_of_equal_views_is_zero(image_folder: Path, tmp_path: Path, more: list[str]) -> None:
    assert run(image_folder, tmp_path / "run", *EQUAL, *more) == 0
    (header,) = events(tmp_path / "run", "header")
    assert header["view_noise"] < 1e-5
    assert header["features"].startswith("input of ")
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 3
    at_logits = "logits" in more  # behind the classifier's own dropout, whose mask is shared, too
    for step in steps:
        assert step["ds"] == pytest.approx(0, abs=1e-6 if not at_logits else 1e-5)
        assert step["ds_relative"] == pytest.approx(0, abs=1e-4)
    assert not events(tmp_path / "run", "warning")


def test_a_resumed_run_draws_what_it_would_have_drawn(image_folder: Path, tmp_path: Path) -> None:
    model = ["--model", "efficientnet_b0", "--batch-size", "4"]
    assert run(image_folder, tmp_path / "a", *model, "--max-steps", "4") == 0
    assert run(image_folder, tmp_path / "b", *model, "--max-steps", "2") == 0
    assert run(image_folder, tmp_path / "b", *model, "--max-steps", "4", "--resume") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_over_two_ranks(image_folder: Path, tmp_path: Path) -> None:
    ranked(2, image_folder, tmp_path / "run", *EQUAL)
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 3
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
