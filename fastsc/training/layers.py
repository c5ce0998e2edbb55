"""Which parameters train, and at which multiple of the learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from fastsc.config import OptimConfig
from fastsc.errors import UserError
from fastsc.models.features import FeatureModel
from fastsc.pipelines.fields import did_you_mean

_ROWS = nn.Sequential, nn.ModuleList


def freeze(model: FeatureModel, patterns: Sequence[str], new_head: str | None) -> None:
    """Takes parameters out of training, in place.

    Args:
        model: Its architecture's names are searched.
        patterns: Names, names of modules, or shell patterns of these.
        new_head: The layer that has fresh weights; None: there is none.

    Raises:
        UserError: A pattern names nothing, the new head is to stay, or nothing is left to train.
    """
    parameters = dict(model.net.named_parameters())
    for pattern in patterns:
        forms = pattern, f"{pattern}.*"
        chosen = [name for name in parameters if any(fnmatchcase(name, form) for form in forms)]
        if not chosen:
            near = did_you_mean(pattern, [name for name, _ in model.net.named_modules() if name])
            raise UserError(f"--freeze {pattern}: model {model.name} has nothing like it{near}")
        if new_head is not None and any(n.startswith(f"{new_head}.") for n in chosen):
            raise UserError(
                f"--freeze {pattern}: {new_head} is new, since --init has another number of "
                "classes, and would stay random"
            )
        for name in chosen:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        if not patterns:
            raise UserError(f"model {model.name}: no parameter of it requires a gradient")
        raise UserError(f"--freeze {' '.join(patterns)}: nothing is left to train")


def lr_scales(model: FeatureModel, config: OptimConfig) -> dict[nn.Parameter, float]:
    """The multiple of the learning rate of each parameter; those that are not in it have 1.

    `lr_layer_decay` to the power of the layers between a parameter's and the head (Clark et al.,
    arXiv 2003.10555; for vision BEiT, arXiv 2106.08254), and `lr_head` for the head. Layers are
    what timm says of its networks; of others the blocks of their rows of blocks, and what stands
    before, between and after these.
    """
    decay, net = config.lr_layer_decay, model.net
    if decay == 1 and config.lr_head == 1:
        return {}
    head = list(net.get_submodule(model.classifier_name).parameters())
    if hasattr(net, "group_matcher"):
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(net, layer_decay=decay)
        scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    else:
        layers = [[p for p in layer if all(p is not h for h in head)] for layer in _layers(net)]
        layers = [layer for layer in layers if layer]
        scales = {p: decay ** (len(layers) - i) for i, ps in enumerate(layers) for p in ps}
    return scales | dict.fromkeys(head, config.lr_head)


def _layers(net: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, the first layer's first.

    What is a module's own, such as a position's embedding, is of the first layer in it; a norm
    between two layers is of the one before.
    """
    layers: list[list[nn.Parameter]] = []
    for own, module in _blocks(net, sum(p.numel() for p in net.parameters())):
        parameters = own + list(module.parameters())
        if layers and all(p.ndim <= 1 for p in parameters):
            layers[-1] += parameters
        elif parameters:
            layers.append(parameters)
    return layers


def _blocks(module: nn.Module, whole: int) -> Iterator[tuple[list[nn.Parameter], nn.Module]]:
    """The modules that are layers, with parameters of those around them that come first."""
    own = list(module.parameters(recurse=False))
    for child in module.children():
        n = sum(p.numel() for p in child.parameters())
        if isinstance(child, _ROWS) or (2 * n > whole and list(child.children())):
            for more, block in _blocks(child, whole):
                yield own + more, block
                own = []
        else:
            yield own, child
            own = []
    if own:
        yield own, nn.Identity()
