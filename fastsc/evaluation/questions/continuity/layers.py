"""Where in a network continuity is lost: ds_relative at every stage of any architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.views import Indices, Viewer, following
from fastsc.models.probe import hooked, probe
from fastsc.models.representation import average_positions

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LARGE = 0.3  # of the weights below the head: the largest part is opened, if it holds more
SMALL = 0.05  # and no sibling of its kind holds more than this: a ResNet's layers stay whole
REPRESENTATION = "representation"


def profile(viewer: Viewer, index: Indices) -> Arrays:
    """Distances at every stage, of each image and its perturbed view.

    Each stage's output is averaged over its positions, (N, E). `between` is the distance from
    another image, j from a fixed keyed derangement; `shuffled` that from another's perturbed view,
    which is what a stage shows that tells nothing of the image.

    Returns:
        "stages": names in forward order, the representation last; and the columns (m,)
        "moved/STAGE", "between/STAGE", "shuffled/STAGE".
    """
    table = viewer.loader.plan().factors
    clean: dict[str, list[Tensor]] = {}
    perturbed: dict[str, list[Tensor]] = {}
    n_batches = -(-len(index) // viewer.settings.batch_size)
    with _watched(viewer.model) as stages:
        for images in viewer.images(index, "continuity: layer profile"):
            for factors, view in ((None, clean), (table[index[images.rows]], perturbed)):
                stages.clear()
                response = viewer.respond(images.pixels, factors)
                for name, value in (*stages.items(), (REPRESENTATION, response.features)):
                    view.setdefault(name, []).append(value.cpu())
    other = torch.from_numpy(following(index, viewer.loader))
    whole = {
        name: (torch.cat(parts), torch.cat(perturbed[name]))
        for name, parts in clean.items()
        # A module that some views pass by is no stage of theirs.
        if len(parts) == len(perturbed.get(name, ())) == n_batches
    }
    columns: Arrays = {"stages": np.array(list(whole))}
    for name, (f, g) in whole.items():
        columns[f"moved/{name}"] = (f - g).norm(dim=1).double().numpy()
        columns[f"between/{name}"] = (f - f[other]).norm(dim=1).double().numpy()
        columns[f"shuffled/{name}"] = (f - g[other]).norm(dim=1).double().numpy()
    return columns


def find_stages(model: Classifier) -> tuple[str, ...]:
    """Names of the modules that are a network's stages, in the order of their definition.

    The network is opened from the outside: as long as one part holds most of the weights and has
    no sibling of its kind (`features`, `blocks`, `encoder.layers`), its parts take its place; so do
    the network's where a module around it has no others. The head, which holds the classifier's
    layers, is not a stage; nor is what has no weights.
    """
    net = model.net
    heads = probe(net, model.name, model.preprocessing.resolution).heads
    return tuple(_open(net, "", {head.call.module for head in heads}))


def _open(module: nn.Module, prefix: str, heads: set[nn.Module]) -> Iterator[str]:
    weighty = {name: part for name, part in module.named_children() if _size(part)}
    parts = {name: part for name, part in weighty.items() if heads.isdisjoint(part.modules())}
    if not parts:  # around a whole network, to normalize its images say
        for name, part in weighty.items():
            yield from _open(part, f"{prefix}{name}.", heads)
    total = sum(map(_size, parts.values()))
    largest = max(parts, key=lambda name: _size(parts[name]), default="")
    for name, part in parts.items():
        siblings = [other for key, other in parts.items() if key != name]
        alone = not any(
            (type(other) is type(part) or isinstance(other, CONTAINERS))
            and _size(other) > SMALL * total
            for other in siblings
        )
        opens = name == largest and _size(part) > LARGE * total and alone
        # A ModuleList is never called itself.
        if isinstance(part, nn.ModuleList) or (opens and len(_weighty(part)) > 1):
            yield from _open(part, f"{prefix}{name}.", heads)
        elif not isinstance(part, _NORMS):
            yield f"{prefix}{name}"


_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip


def _weighty(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.children() if _size(part)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _watched(model: Classifier) -> Iterator[dict[str, Tensor]]:
    """Within the context a forward pass writes each stage's output, averaged, into the dict."""
    names = {model.net.get_submodule(name): name for name in find_stages(model)}
    stages: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: object, kwargs: object, output: object) -> None:
        del args, kwargs
        try:
            stages[names[module]] = average_positions(output)
        except ValueError:  # a list of maps, tokens in a dict: no stage that can be compared
            stages.pop(names[module], None)

    with hooked(names, keep):
        yield stages
