"""Any classifier, with what is needed to show it images and to read its representation."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property

import torch
from torch import Tensor, nn

from fastsc.errors import UserError, one_line
from fastsc.evaluation.models.passes import Passes
from fastsc.loading.preprocessing import Preprocessing
from fastsc.models.features import FeatureModel
from fastsc.models.outputs import logits_of, plain
from fastsc.models.probe import PROBES, device_of, not_run, probe
from fastsc.models.representation import average_positions
from fastsc.run.checkpoint import check_weights

REPEATS = 1e-3  # standard deviations that two answers to the same images may differ by, on a GPU


class Classifier(nn.Module):
    """forward(x (N, 3, H, W)) -> (features (N, D), logits (N, C)), float32, in eval mode.

    Args:
        net: Takes normalized images and returns logits (N, C), alone or in what
            `models.outputs.logits_of` takes.
        name: What it is called in tables and messages.
        preprocessing: How its images are made.
        classes: Names of its C outputs, where they are known.
        features: A module of the net whose output, averaged over its positions, is the
            representation. Default: the input of the classifier, as `FeatureModel` has it.

    Attributes:
        passes: How many images go through the net at once. In training mode, where batch norm
            makes them depend on each other, all of them do.

    Raises:
        UserError: The net does not run on two images of this resolution or on one, is no
            classifier, has weights that are not finite, no linear layer or no such module, or
            another number of classes; or it does not answer twice alike.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        preprocessing: Preprocessing | None = None,
        *,
        classes: tuple[str, ...] | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing or Preprocessing()
        self.name, self.features = name, features
        self.passes = Passes()
        # Of the module itself, so that one without parameters knows where it is.
        self.register_buffer("_here", torch.empty(0, device=device_of(net)), persistent=False)
        check_weights(net, name)
        shown = probe(net, name, self.preprocessing.resolution)
        _check_logits(shown.logits, name)
        shape = shown.logits.shape
        self.n_classes = shape[1]
        if classes is not None and len(classes) != self.n_classes:
            raise UserError(
                f"model {name} has {self.n_classes} outputs and {len(classes)} class names"
            )
        self.classes = classes
        self._stage: Tensor | None = None
        self._contiguous = False
        if features is None:
            if not shown.heads:
                raise UserError(_no_head(net, name, shown.rows))
            resolution = self.preprocessing.resolution
            self.model: nn.Module = FeatureModel(net, name, self.n_classes, resolution, shown)
        else:
            self.model = net
            self._hook(net, features)
        self.eval().requires_grad_(False)
        self._check_repeats()
        self._check_alone()

    @property
    def net(self) -> nn.Module:
        """The architecture as its library builds it."""
        return self.model.net if isinstance(self.model, FeatureModel) else self.model

    @property
    def representation(self) -> str:
        """What the features are, in words."""
        if isinstance(self.model, FeatureModel):
            return self.model.features_from
        return f"output of {self.features}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) -> features (N, D), logits (N, C), in float32; of float64 in float64.

        Raises:
            UserError: The logits are not (N, C), or the module of the features does not run.
        """
        return self._answer(x) if self.training else self.passes.answers(self._answer, x)

    def _answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous() if self._contiguous else x
        # Whatever the network casts to inside.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.features is None:
            features, logits = self.model(x)
            return features.to(dtype), self._shaped(logits, len(x)).to(dtype)
        logits = self._shaped(logits_of(self.model(x)), len(x)).to(dtype)
        stage, self._stage = self._stage, None
        if stage is None:
            raise UserError(
                f"--features {self.features}: model {self.name} does not call it; name another"
            )
        return plain(stage).to(dtype), logits

    def _shaped(self, logits: Tensor, n: int) -> Tensor:
        """Logits (N, C) of n images; a network that squeezes leaves out the N of a single one."""
        if logits.shape == (n, self.n_classes):
            return logits
        if n == 1 and logits.shape == (self.n_classes,):
            return logits[None]
        raise UserError(
            f"model {self.name} is not a classifier: for {_images(n)} it returns "
            f"{tuple(logits.shape)}, not ({n}, {self.n_classes})"
        )

    def use_channels_last(self) -> Classifier:
        """In place, channels last, which is faster; not of a net whose views do not allow it."""
        self.to(memory_format=torch.channels_last)
        side = self.preprocessing.resolution
        images = torch.zeros(PROBES, 3, side, side, device=device_of(self))
        try:
            with torch.no_grad():
                self(images.to(memory_format=torch.channels_last))
        except Exception:  # noqa: BLE001, a model's forward can raise anything
            self.to(memory_format=torch.contiguous_format)
            self._contiguous = True
        return self

    def class_name(self, output: int) -> str:
        """What an output is called; its number where the names are not known."""
        return self.classes[output] if self.classes else f"class {output}"

    @cached_property
    def hash(self) -> str:
        """Names the function: of weights, architecture, preprocessing and representation.

        And of what it answers to a few pictures of noise, to three digits: weights and the names of
        modules do not tell of a forward that was rewritten, a temperature, a function in place of
        another.
        """
        digest = hashlib.sha256(repr((self.features, asdict(self.preprocessing))).encode())
        digest.update(str(self.net).encode())
        digest.update(self._answers().encode())
        for key, value in self.net.state_dict().items():
            digest.update(key.encode())
            _digest(value, digest.update)
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def _probed(self) -> tuple[Tensor, Tensor]:
        """What it answers to a few pictures of noise, the same each time."""
        side = self.preprocessing.resolution
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(PROBES, 3, side, side, generator=generator).to(device_of(self))
        try:
            features, logits = self(images)
        except UserError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(not_run(self, self.name, images, error)) from None
        if features.ndim != 2 or len(features) != PROBES:
            raise UserError(
                f"model {self.name}: of {PROBES} images the {self.representation} is "
                f"{tuple(features.shape)}, not (N, D); name another module with --features"
            )
        return features, logits

    def _check_repeats(self) -> None:
        """Raises UserError where equal images get other answers when they are shown again."""
        for what, one, other in zip(("features", "logits"), self._probed(), self._probed()):
            apart = float((one - other).abs().max() / one.std().clamp_min(1e-12))
            if apart > REPEATS:
                raise UserError(
                    f"model {self.name} answers otherwise each time that it is shown the same "
                    f"images: its {what} differ by {apart:.2g} of their standard deviation; "
                    "something in it draws at random in evaluation mode, dropout say"
                )

    @torch.no_grad()
    def _check_alone(self) -> None:
        """Raises UserError where it takes no single image, as the last batch or a pass may be."""
        side = self.preprocessing.resolution
        what = f"takes {PROBES} images at once and not one alone, which a batch may have"
        with one_line(f"model {self.name} {what}", (Exception,)):
            self(torch.zeros(1, 3, side, side, device=device_of(self)))

    def _answers(self) -> str:
        features, logits = self._probed()
        figures = (f"{x.std():.2e} {x.abs().max():.2e}" for y in (features, logits) for x in y)
        return f"{logits.argmax(1).tolist()} {' '.join(figures)}"

    def _hook(self, net: nn.Module, features: str) -> None:
        modules = dict(net.named_modules())
        if features not in modules or not features:
            near = difflib.get_close_matches(features, modules, n=3)
            known = near or [name for name, _ in net.named_children()]
            raise UserError(
                f"--features {features}: model {self.name} has no such module; one as "
                f"{', '.join(known)}"
            )
        if isinstance(modules[features], torch.jit.ScriptModule):
            raise UserError(_no_head(net, self.name, PROBES))
        modules[features].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        del module, args
        try:
            self._stage = average_positions(output)
        except ValueError as error:
            raise UserError(f"--features {self.features}: {error}") from None


def _no_head(net: nn.Module, name: str, rows: int) -> str:
    """Why a network has no head, whose last layer with C outputs had so many rows of input."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
        return (
            f"model {name} is a TorchScript module, of which no layer can be read; hand over the "
            "nn.Module that it was made from"
        )
    if rows != PROBES:
        return (
            f"model {name}: of {PROBES} images its linear layer gets {rows} rows, not one per "
            "image; hand over the network without what makes several of an image"
        )
    return (
        f"model {name} has no linear layer before its outputs; name the module whose output "
        "is its representation with --features"
    )


def _check_logits(logits: Tensor, name: str) -> None:
    """Raises UserError where a network's answer to `PROBES` images is not (N, C) logits."""
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != PROBES or shape[1] < 2:
        n, own = (1, (1, *shape[1:])) if shape[:1] == (PROBES,) else (PROBES, shape)
        raise UserError(
            f"model {name} is not a classifier: for {_images(n)} it returns {own}, not ({n}, C)"
        )
    if not logits.is_floating_point():
        raise UserError(f"model {name} is not a classifier: it returns {logits.dtype}, not logits")


def _images(n: int) -> str:
    return "one image" if n == 1 else f"{n} images"


def _digest(value: object, update: Callable[[bytes], object]) -> None:
    """Hands on what an entry of a state dict is made of; extra state need not be a tensor."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain.dequantize() if plain.is_quantized else plain.to_dense()
        data = plain.contiguous().reshape(-1)
        update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    elif isinstance(value, Mapping):
        _digest([part for item in value.items() for part in item], update)
    elif isinstance(value, tuple | list):
        for part in value:
            _digest(part, update)
    elif isinstance(value, str | bytes | int | float | None | torch.dtype):
        update(repr(value).encode())
    else:  # others say where they lie in memory
        update(type(value).__qualname__.encode())
