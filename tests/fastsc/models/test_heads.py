"""The features are the input of the layer whose output is the logits, before all dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsc.errors import UserError
from fastsc.models.build import build_model
from fastsc.models.features import FeatureModel

D, C = 8, 5
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Linear):
    """A linear layer that takes nothing but (N, L, D)."""

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        return super().forward(x.reshape(n * length, d)).view(n, length, -1)


class Net(nn.Module):
    """A trunk (N, D, 4, 4), layers that may be heads, and a head of one's own."""

    def __init__(self, head: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, D, 4, stride=4)
        self.fc, self.fc2, self.narrow = nn.Linear(D, C), nn.Linear(D, C), nn.Linear(D // 2, C)
        self.gate, self.squeeze = nn.Linear(D, 2), nn.Linear(D, D)
        self.point, self.wide = nn.Conv2d(D, C, 1), nn.Linear(D, C)
        self.of_tokens = Tokens(D, C)
        self.drop, self.drop2 = nn.Dropout(0.5), nn.Dropout(0.3, inplace=True)
        self.alpha, self.feature_alpha = nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)
        self.head = head

    def trunk(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x).relu()
        return out

    def forward(self, x: Tensor) -> Any:
        return self.head(self, self.trunk(x))


def pooled(m: Tensor) -> Tensor:
    return m.mean((2, 3))


def tokens(m: Tensor) -> Tensor:
    return m.flatten(2).transpose(1, 2)


def squeezed(n: Any, m: Tensor) -> Tensor:
    return m * n.squeeze(pooled(m)).sigmoid()[:, :, None, None]


def experts(n: Any, m: Tensor) -> Tensor:
    x = pooled(m)
    return torch.einsum("ne,nec->nc", n.gate(x).softmax(1), torch.stack([n.fc(x), n.fc2(x)], 1))


def late_gate(n: Any, m: Tensor) -> Tensor:
    logits = n.fc(pooled(m))
    return logits * n.fc2(m.amax((2, 3))).sigmoid()


def two(m: Tensor) -> tuple[Tensor, Tensor]:
    return pooled(m), m.amax((2, 3))


# What the head does with the trunk's map, the features that it has then, and what they are called.
HEADS: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Tensor], str]] = {
    "linear": (lambda n, m: n.fc(pooled(m)), lambda n, m: pooled(m), "input of fc"),
    "scaled": (lambda n, m: 3 * n.fc(pooled(m)) / 0.07, lambda n, m: pooled(m), "input of fc"),
    "softmax": (lambda n, m: n.fc(pooled(m)).softmax(1), lambda n, m: pooled(m), "input of fc"),
    "relu behind": (lambda n, m: n.fc(pooled(m)).relu(), lambda n, m: pooled(m), "input of fc"),
    "reshaped": (
        lambda n, m: n.fc(pooled(m)[:, None]).transpose(1, 2).squeeze(2),
        lambda n, m: pooled(m), "input of fc",
    ),
    "auxiliary after it": (
        lambda n, m: (n.fc(pooled(m)), n.fc2(tokens(m)).amax(1))[0] + 0 * pooled(m)[:, :1],
        lambda n, m: pooled(m), "input of fc",
    ),
    "auxiliary as VOLO's": (
        lambda n, m: n.fc(tokens(m)[:, 0]) + 0.5 * n.fc2(tokens(m)[:, 1:]).max(1)[0],
        lambda n, m: tokens(m)[:, 0], "input of fc",
    ),
    "mean of two": (
        lambda n, m: (n.fc(two(m)[0]) + n.fc2(two(m)[1])) / 2,
        lambda n, m: (two(m)[0] + two(m)[1]) / 2, "mean of the inputs of fc and fc2",
    ),
    "stacked": (
        lambda n, m: torch.stack([n.fc(two(m)[0]), n.fc2(two(m)[1])]).mean(0),
        lambda n, m: (two(m)[0] + two(m)[1]) / 2, "mean of the inputs of fc and fc2",
    ),
    "of two sizes": (
        lambda n, m: n.fc(pooled(m)) + n.narrow(pooled(m)[:, : D // 2]),
        lambda n, m: torch.cat([pooled(m), pooled(m)[:, : D // 2]], 1),
        "inputs of fc and narrow, concatenated",
    ),
    "experts": (experts, lambda n, m: pooled(m), "input of fc and fc2"),
    "gate after it": (late_gate, lambda n, m: pooled(m), "input of fc"),
    "convolution, pooled after": (
        lambda n, m: pooled(n.point(m)), lambda n, m: pooled(m), "input of point",
    ),
    "convolution after squeeze": (
        lambda n, m: n.point(squeezed(n, m).mean((2, 3), keepdim=True)).flatten(1),
        lambda n, m: pooled(squeezed(n, m)), "input of point",
    ),
    "mean over tokens": (
        lambda n, m: n.fc(tokens(m)).mean(1), lambda n, m: pooled(m), "input of fc",
    ),
    "one of the tokens": (
        lambda n, m: n.fc(tokens(m))[:, 0], lambda n, m: tokens(m)[:, 0], "input of fc",
    ),
    "maximum over tokens": (
        lambda n, m: n.fc(tokens(m)).amax(1), lambda n, m: pooled(m), "input of fc",
    ),
    "of tokens alone": (
        lambda n, m: n.of_tokens(tokens(m)).mean(1), lambda n, m: pooled(m),
        "input of of_tokens",
    ),
    "convolution, relu, pooled": (
        lambda n, m: pooled(n.point(m).relu()), lambda n, m: pooled(m), "input of point",
    ),
    "convolution, maximum": (
        lambda n, m: n.point(m).amax((2, 3)), lambda n, m: pooled(m), "input of point",
    ),
    "called by name": (
        lambda n, m: n.fc(input=n.drop(input=pooled(m))), lambda n, m: pooled(m), "input of fc",
    ),
    "tokens by name": (
        lambda n, m: n.fc(input=tokens(m))[:, 0], lambda n, m: tokens(m)[:, 0], "input of fc",
    ),
    "in a dictionary": (
        lambda n, m: {"logits": n.fc(pooled(m)), "aux": n.fc2(pooled(m))},
        lambda n, m: pooled(m), "input of fc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("frozen", [False, True])
def test_features_are_the_input_of_what_gives_the_logits(case: str, frozen: bool) -> None:
    head, oracle, words = HEADS[case]
    net = Net(head).requires_grad_(not frozen)
    model = FeatureModel(net, "net", C, 16).eval()
    with torch.no_grad():
        features, logits = model(X)
        torch.testing.assert_close(features, oracle(net, net.trunk(X)))
        bare = net(X)
        assert torch.equal(logits, bare["logits"] if isinstance(bare, dict) else bare)
    assert model.features_from == words
    assert model.feature_dim == features.shape[1]
    assert all(p.requires_grad is not frozen for p in net.parameters())


def test_a_gate_is_no_classifier() -> None:
    def head(n: Any, m: Tensor) -> Tensor:
        return pooled(F.conv2d(squeezed(n, m), n.point.weight))

    with pytest.raises(UserError, match="no linear classifier"):
        FeatureModel(Net(head), "net", C, 16)


# Dropout before the classifier: x is (N, D).
DROPOUTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": lambda n, x: n.drop(x),
    "module, twice": lambda n, x: n.drop2(n.drop(x)),
    "the same, twice": lambda n, x: n.drop2(n.drop2(x)),
    "alpha": lambda n, x: n.alpha(x),
    "feature alpha": lambda n, x: n.feature_alpha(x),
    "function": lambda n, x: F.dropout(x, 0.5, n.training),
    "function in place": lambda n, x: F.dropout(x, 0.5, n.training, inplace=True),
    "function, twice": lambda n, x: F.dropout(F.dropout(x, 0.5, n.training), 0.3, n.training, True),
    "torch's": lambda n, x: torch.dropout(x, 0.5, n.training),
    "torch's in place": lambda n, x: torch.dropout_(x, 0.5, n.training),
    "alpha function": lambda n, x: F.alpha_dropout(x, 0.5, n.training),
    "module and function": lambda n, x: F.dropout(n.drop(x), 0.5, n.training),
    "function and module": lambda n, x: n.drop(F.dropout(x, 0.5, n.training)),
}


@pytest.mark.parametrize("case", DROPOUTS)
def test_features_are_taken_before_all_dropout(case: str) -> None:
    net = Net(lambda n, m: n.fc(DROPOUTS[case](n, pooled(m))))
    model = FeatureModel(net, "net", C, 16).train()
    with torch.no_grad():
        features, logits = model(X)
        torch.testing.assert_close(features, pooled(net.trunk(X)))
        assert not torch.allclose(logits, net.fc(features), atol=1e-3), "it still acts"


def test_a_convolution_of_the_trunk_is_no_classifier() -> None:
    def head(n: Any, m: Tensor) -> Tensor:
        return pooled(F.conv2d(n.point(m).relu(), torch.ones(C, C, 1, 1)))

    with pytest.raises(UserError, match="no linear classifier"):
        FeatureModel(Net(head), "net", C, 16)


@pytest.mark.parametrize("case", DROPOUTS)
def test_two_heads_have_dropouts_of_their_own(case: str) -> None:
    def head(n: Any, m: Tensor) -> Tensor:
        dropped = [DROPOUTS[case](n, x) for x in two(m)]
        logits: Tensor = n.fc(dropped[0]) + n.fc2(dropped[1])
        return logits

    net = Net(head)
    model = FeatureModel(net, "net", C, 16).train()
    with torch.no_grad():
        features, logits = model(X)
        first, second = two(net.trunk(X))
        torch.testing.assert_close(features, (first + second) / 2)
        assert not torch.allclose(logits, net.fc(first) + net.fc2(second), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "resolution"), [("deit_tiny_distilled_patch16_224", 32), ("crossvit_tiny_240", 240)]
)
def test_timms_dropouts_before_two_heads(name: str, resolution: int) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=C, drop_rate=0.5, img_size=resolution)
    model = FeatureModel(net, name, C, resolution).train()
    x = torch.rand(2, 3, resolution, resolution)
    with torch.no_grad():
        (once, logits), (again, others) = model(x), model(x)
    assert torch.equal(once, again)
    assert not torch.equal(logits, others)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "resolution", "layers"),
    [
        ("timm:deit_tiny_distilled_patch16_224", 32, ("head", "head_dist")),
        ("timm:crossvit_tiny_240", 240, ("head.0", "head.1")),
        ("timm:resnetv2_50x1_bit", 32, ("head.fc",)),
    ],
)
def test_timms_heads(name: str, resolution: int, layers: tuple[str, ...]) -> None:
    """timm's own pre-logits are the oracle: the mean, or one after the other."""
    torch.manual_seed(0)
    model = build_model(name, C, "imagenet", resolution).eval()
    net: Any = model.net
    x = torch.rand(2, 3, resolution, resolution)
    with torch.no_grad():
        features, logits = model(x)
        oracle = net.forward_head(net.forward_features(x), pre_logits=True)
        torch.testing.assert_close(features, oracle.flatten(1))
        assert torch.equal(logits, net(x))
    assert all(layer in model.features_from for layer in layers)
