"""The logits in whatever a forward returns, where it is clear which they are."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.googlenet import GoogLeNetOutputs

from fastsc.models.outputs import logits_of

LOGITS, OTHER, MAPS = torch.rand(2, 5), torch.rand(2, 5), torch.rand(2, 8, 4, 4)


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None


class ModelOutput(collections.OrderedDict[str, Any]):
    """As Hugging Face's."""


class Attributes:
    def __init__(self) -> None:
        self.loss, self.logits = None, LOGITS


class Slots:
    __slots__ = ("logits",)

    def __init__(self) -> None:
        self.logits = LOGITS


class Property:
    def __init__(self) -> None:
        self.aux, self._logits = OTHER, LOGITS

    @property
    def logits(self) -> Tensor:
        return self._logits


class Subclass(Tensor):
    """A tensor of another type, as a library's."""


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        LOGITS[:, :, None, None],
        {"logits": LOGITS, "aux": OTHER},
        {"out": LOGITS, "features": MAPS},
        {"loss": torch.tensor(0.3), "out": LOGITS, "labels": torch.ones(2, 5, dtype=torch.int64)},
        {"head": {"logits": LOGITS}, "aux": OTHER},
        (LOGITS, None),
        [LOGITS],
        (torch.tensor(0.3), LOGITS, (MAPS, MAPS)),
        (MAPS, LOGITS[:, :, None, None]),
        GoogLeNetOutputs(LOGITS, OTHER, OTHER),
        Output(LOGITS, OTHER),
        ModelOutput(loss=None, logits=LOGITS, hidden_states=(OTHER,)),
        Attributes(),
        Slots(),
        Property(),
    ],
)
def test_logits_are_found(output: object) -> None:
    assert torch.equal(logits_of(output), LOGITS)


def test_a_tensor_of_a_subclass_becomes_a_plain_one_with_its_gradient() -> None:
    weight = LOGITS.clone().requires_grad_()
    logits = logits_of({"logits": (2 * weight).as_subclass(Subclass)})
    assert type(logits) is Tensor
    assert f"{logits.std():.2g}"
    (gradient,) = torch.autograd.grad(logits.sum(), weight)
    assert torch.equal(gradient, torch.full_like(LOGITS, 2))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((LOGITS, OTHER), r"tuple of 0 \(2, 5\), 1 \(2, 5\)"),
        ({"a": LOGITS, "b": {"c": OTHER}}, r"dict of a \(2, 5\), b.c \(2, 5\)"),
        ({"out": MAPS}, r"dict of out \(2, 8, 4, 4\)"),
        (None, "NoneType without tensors"),
        ({}, "dict without tensors"),
    ],
)
def test_what_is_not_clear_is_named(output: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        logits_of(output)
