"""A network of ours with what its export says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastsc.cli.console import printable
from fastsc.config.recipes import load_recipe
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.sources import load_source
from fastsc.loading.libraries import Architecture
from fastsc.loading.preprocessing import Preprocessing
from fastsc.models.build import build_net
from fastsc.models.front import tell_normalization
from fastsc.run.checkpoint import load_model_state, load_safetensors

CLOSE = 1e-4  # of the largest logit, what an export may differ by


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """Weights and metadata of a run.

    Attributes:
        path: RUN, as it was given.
        name: The run's or the file's, for titles.
        net: The network, in eval mode on the CPU, float32, without hooks.
        architecture: What it was built of.
        classifier: The same weights as an evaluation loads them: what exports are compared with.
        classes: Names of its outputs.
        plain: Whether it was trained without the constraint; None where no config.yaml says so.
    """

    path: Path
    name: str
    net: nn.Module
    architecture: Architecture
    classifier: Classifier
    classes: tuple[str, ...]
    plain: bool | None

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are made."""
        return self.classifier.preprocessing

    def images(self, n: int) -> Tensor:
        """n normalized images (n, 3, R, R) of noise, the same at every call."""
        side = self.preprocessing.resolution
        generator = torch.Generator().manual_seed(n)
        return torch.randn(n, 3, side, side, generator=generator)

    @torch.no_grad()
    def difference(self, logits: Tensor, images: Tensor) -> float:
        """Between logits (N, C) of an export and the network's, over the largest, at least 1.

        images: (N, 3, R, R), normalized.
        """
        wanted = self.classifier(images)[1]
        return float((logits - wanted).abs().max() / wanted.abs().max().clamp_min(1))


def load_trained(model: str) -> Trained:
    """The network of a run's folder or of its weights file.

    Raises:
        UserError: There is none, or it has no weights yet.
    """
    path = Path(model)
    if not path.exists():
        raise UserError(f"{model}: no such folder or file; RUN is a run's folder or its weights")
    file = path / "weights.safetensors" if path.is_dir() else path
    try:
        source = load_source(model)
    except UserError as error:
        # Without an evaluation's advice, which has options of its own.
        line = re.split("; if it is another's|; name it:", str(error))[0]
        raise UserError(f"{line}; RUN is a run's folder or its weights.safetensors") from None
    classifier, architecture = source.classifier, source.architecture
    assert architecture is not None  # of a file of ours
    # A network of its own: the classifier's has hooks, which tracing would follow.
    net = build_net(
        architecture.name,
        classifier.n_classes,
        architecture.stem,
        classifier.preprocessing.resolution,
        blurpool=architecture.blurpool,
        front=architecture.front,
    )
    tell_normalization(net, classifier.preprocessing.mean, classifier.preprocessing.std)
    state, _ = load_safetensors(file)
    load_model_state(net, state, file)
    resolved = file.resolve()
    return Trained(
        path=path,
        name=printable(
            resolved.parent.name if file.name == "weights.safetensors" else resolved.stem
        ),
        net=net.eval().requires_grad_(False),
        architecture=architecture,
        classifier=classifier,
        classes=classifier.classes or tuple(map(str, range(classifier.n_classes))),
        plain=_plain(file.parent / "config.yaml"),
    )


def _plain(config: Path) -> bool | None:
    """Whether the run trained without the constraint; None where no run's config.yaml says so."""
    try:
        return load_recipe(str(config)).method.plain if config.is_file() else None
    except UserError:  # another program's: a weights file may lie anywhere
        return None
