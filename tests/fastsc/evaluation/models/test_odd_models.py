"""Networks of every make: an answer that is their own, or the reason why there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, load_source

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.aux = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4), nn.Linear(8, 4)
        self.point, self.flat = nn.Conv2d(8, 4, 1), nn.Linear(8 * 256, 4)

    def pooled(self, x):
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.pooled(x))

class Pair(Net):
    def forward(self, x):
        return self.fc(self.pooled(x)), self.aux(self.pooled(x))

class Named(Net):
    def forward(self, x):
        return {"logits": self.fc(self.pooled(x)), "aux": self.aux(self.pooled(x))}

class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()

class Subclass(Net):
    def forward(self, x):
        return super().forward(x).as_subclass(type("T", (torch.Tensor,), {}))

class ByName(Net):
    def forward(self, x):
        return self.fc(input=self.pooled(x))

class Pairs(Net):
    def forward(self, x):
        assert len(x) > 1, "pairs of images only"
        return super().forward(x)

class Derives(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits + torch.autograd.grad(logits.sum(), self.conv.weight)[0].mean()

class Flipped(Net):
    def forward(self, x):
        return super().forward(torch.cat([x, x.flip(3)])).chunk(2)[0]

class Sparse(Net):
    def forward(self, x):
        return super().forward(x).to_sparse()

class Alone(Net):
    def forward(self, x):
        return self.fc(self.pooled(x).view(1, 8))

class Batched(Net):
    def forward(self, x):
        return self.fc(self.pooled(x).view(8, 8))

class Large(Net):
    def forward(self, x):
        assert x.shape[-1] == 224, "images of 224 pixels only"
        return super().forward(x)

class Summed(Net):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)

class Chosen(Net):
    def forward(self, x):
        return super().forward(x).round().long()

class Probabilities(Net):
    def forward(self, x):
        return self.point(self.pooled(x)[:, :, None, None]).softmax(1)

class Brain(Net):
    def __init__(self):
        super().__init__()
        self.bfloat16()
    def forward(self, x):
        return super().forward(x.bfloat16())

class NormedBrain(Brain):  # beside bfloat16 weights its statistics may not be float32
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3).bfloat16()
        nn.init.constant_(self.norm.running_mean, 0.5)
    def forward(self, x):
        return super().forward(self.norm(x.bfloat16()))

class Double(Net):
    def __init__(self):
        super().__init__()
        self.double()
    def forward(self, x):
        return super().forward(x.double())

class WideAnswer(Net):
    def forward(self, x):
        return super().forward(x).double()

class NarrowAnswer(Net):
    def forward(self, x):
        return super().forward(x).bfloat16()

class Masked(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("unset", torch.tensor(float("nan")))

class NotFinite(Net):
    def __init__(self):
        super().__init__()
        self.aux.bias.data[0] = float("nan")

class Extra(Net):
    def get_extra_state(self):
        return {"seen": [1, "two", None, self]}
    def set_extra_state(self, state):
        pass

class Views(Net):
    def forward(self, x):
        return self.flat(self.conv(x).view(len(x), -1))

class Undifferentiated(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

class InPlace(Net):
    def forward(self, x):
        return super().forward(x.clone().sub_(0.5))

class Arrays(Net):
    def forward(self, x):
        return torch.from_numpy(super().forward(x).numpy())

class Empty(Net):
    def __init__(self):
        super().__init__()
        self.to("meta")

class Nothing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4]

class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.rand(3, 4))
        self.pool = nn.AdaptiveAvgPool2d(1)
    def forward(self, x):
        return self.pool(x).flatten(1) @ self.w

class Stops(Net):
    def forward(self, x):
        return next(iter(()))

def quantized():
    return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})

def scripted():
    return torch.jit.script(Net())

def traced():
    return torch.jit.trace(Net().eval(), torch.rand(1, 3, 32, 32))

def frozen():
    return torch.jit.freeze(torch.jit.script(Net().eval()))

def partly_scripted():
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.ReLU())
    return nn.Sequential(torch.jit.script(flat), nn.Linear(3072, 4))

def parallel():
    return nn.DataParallel(Net())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "odd_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "odd_nets"
    sys.modules.pop("odd_nets", None)


X = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL = {"resolution": 32, "resize": 32}
ANSWERS = [
    "Net", "Named", "Probabilities", "Brain", "NormedBrain", "Double", "WideAnswer",
    "NarrowAnswer", "Masked", "Extra", "Views", "Undifferentiated", "InPlace", "Arrays",
    "quantized", "partly_scripted", "parallel", "Squeezed", "Subclass", "ByName",
]  # fmt: skip


@pytest.mark.parametrize("function", ANSWERS)
@pytest.mark.filterwarnings("ignore")
def test_the_answer_is_the_models_own(function: str, module: str) -> None:
    model = load_source(f"{module}:{function}", ModelOptions(**SMALL)).classifier
    made = getattr(sys.modules[module], function)().eval()
    with torch.no_grad():
        bare = made(X)
        features, logits = model(X)
    bare = bare["logits"] if isinstance(bare, dict) else bare
    assert torch.equal(logits, bare.reshape(5, 4).float())
    assert features.dtype == logits.dtype == torch.float32
    assert features.shape[0] == 5
    assert len(model.hash) == 16
    with torch.no_grad():  # as an evaluation asks it
        images = X.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model.use_channels_last()(images)[1], logits)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("Pair", r"does not return one tensor of logits but a tuple of 0 \(2, 4\), 1 \(2, 4\)"),
        ("Pairs", "takes 2 images at once and not one alone, .*: pairs of images only"),
        ("Derives", "does not run on images of 32 pixels: element 0 of tensors"),
        ("Flipped", "of 2 images its linear layer gets 4 rows, not one per image"),
        ("Sparse", "model odd_nets:Sparse cannot be asked: NotImplementedError: .* …$"),
        ("Alone", "does not take 2 images at once: shape"),
        ("Batched", "does not run on images of 32 pixels: shape"),
        ("Large", "does not run on images of 32 pixels: images of 224 pixels only"),
        ("Summed", r"for 2 images it returns \(1, 4\), not \(2, C\)"),
        ("Chosen", "it returns torch.int64, not logits"),
        ("NotFinite", r"its weights are not finite \(aux.bias\)"),
        ("Empty", r"its weights have no values yet \(conv.weight\)"),
        ("Nothing", "has no linear layer before its outputs"),
        ("Buffers", "has no linear layer before its outputs"),
        ("Stops", "StopIteration"),
        ("scripted", "is a TorchScript module, of which no layer can be read"),
        ("traced", "is a TorchScript module, of which no layer can be read"),
        ("frozen", "is a TorchScript module, of which no layer can be read"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_or_there_is_a_reason(function: str, words: str, module: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_source(f"{module}:{function}", ModelOptions(**SMALL))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("features", [None, "fc"])
def test_one_image_has_logits_of_its_own(module: str, features: str | None) -> None:
    options = ModelOptions(features=features, **SMALL)
    model = load_source(f"{module}:Squeezed", options).classifier
    assert model(X[:1])[1].shape == (1, 4)
    torch.testing.assert_close(model(X[:1])[1], model(X)[1][:1])


def test_a_model_without_parameters_takes_a_named_module(module: str) -> None:
    options = ModelOptions(features="pool", **SMALL)
    features, logits = load_source(f"{module}:Buffers", options).classifier(X)
    torch.testing.assert_close(features, X.mean((2, 3)))
    assert logits.shape == (5, 4)


def test_a_model_that_casts_says_so(module: str) -> None:
    source = load_source(f"{module}:Double", ModelOptions(**SMALL))
    assert source.notes == ("its weights stay in float64, which its forward casts to",)
