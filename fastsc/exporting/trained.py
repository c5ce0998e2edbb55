"""A network of ours with what its export says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Preprocessing
from fastsc.evaluation.models.sources import load_source
from fastsc.models.build import build_net
from fastsc.run.checkpoint import load_model_state, load_safetensors, read_metadata

CLOSE = 1e-4  # of the largest logit, what an export may differ by


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """Weights and metadata of a run.

    Attributes:
        name: The run's or the file's, for titles.
        net: The architecture, in eval mode on the CPU, float32.
        architecture: As `--model` has it: resnet50, timm:NAME, fastsc:NAME.
        stem, blurpool: What was changed in it.
        classes: Names of its outputs.
        preprocessing: How its images are made.
    """

    name: str
    net: nn.Module
    architecture: str
    stem: str
    blurpool: bool
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def images(self, n: int) -> Tensor:
        """n normalized images (n, 3, R, R) of noise, the same at every call."""
        side = self.preprocessing.resolution
        generator = torch.Generator().manual_seed(n)
        return torch.randn(n, 3, side, side, generator=generator)


def load_trained(model: str) -> Trained:
    """The network of a run's folder or of its weights file.

    Raises:
        UserError: There is none, or it has no weights yet.
    """
    path = Path(model)
    if not path.exists():
        raise UserError(f"{model}: no such folder or file; RUN is a run's folder or its weights")
    file = path / "weights.safetensors" if path.is_dir() else path
    classifier = load_source(model).classifier
    state, _ = load_safetensors(file)
    metadata, whole = read_metadata(file), file.resolve()
    architecture, stem = metadata.text("architecture"), metadata.text("stem")
    blurpool = metadata.values.get("blurpool") is True
    # A network of its own: the classifier's has hooks, which tracing would follow.
    net = build_net(
        architecture,
        classifier.n_classes,
        "cifar" if stem == "cifar" else "imagenet",
        classifier.preprocessing.resolution,
        blurpool=blurpool,
    )
    load_model_state(net, state, file)
    return Trained(
        name=whole.parent.name if file.name == "weights.safetensors" else whole.stem,
        net=net.eval().requires_grad_(False),
        architecture=architecture,
        stem=stem,
        blurpool=blurpool,
        classes=classifier.classes or tuple(map(str, range(classifier.n_classes))),
        preprocessing=classifier.preprocessing,
    )


def largest_difference(logits: Tensor, wanted: Tensor) -> float:
    """Of two (N, C), over the largest of the wanted logits, at least 1."""
    return float((logits - wanted).abs().max() / wanted.abs().max().clamp_min(1))
