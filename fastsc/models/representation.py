"""The representation that DS compares: pooled features, logits, or a stage of the network."""

from __future__ import annotations

import difflib
from typing import NamedTuple, Self, cast

from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.kernels.distance import wide
from fastsc.models.features import FeatureModel
from fastsc.models.noise import SharedDraws
from fastsc.models.pooling import PoolDS
from fastsc.models.views import Views


class Outputs(NamedTuple):
    """What a forward pass gives for N rows."""

    features: Tensor  # (N, D) float32, pooled
    logits: Tensor  # (N, C)
    representation: Tensor  # (N, E) float32: what DS compares
    ds: Tensor | None = None
    """DS of the views, where it was measured on the way: in training, by `PoolDS`."""

    def views(self, n_clean: int) -> tuple[Outputs, Outputs]:
        """The rows of the clean views, and those of the perturbed ones."""
        rows = self.features, self.logits, self.representation
        return Outputs(*(x[:n_clean] for x in rows)), Outputs(*(x[n_clean:] for x in rows))


class Represented(nn.Module):
    """A `FeatureModel` with the representation that DS compares; forward gives `Outputs`.

    Args:
        model: What gives features and logits.
        at: "features", "logits", or the name of a module of the architecture (layer3, stages.2),
            whose output is averaged in float32 over all positions: (N, C, H, W) over H and W,
            tokens (N, L, C) over L.
        views: Told to the modules that know views: batch norms that keep their statistics apart,
            dropouts that give both views of an image one mask.
        pool: Takes the place of the model's global average pooling, and measures DS on the way.

    Attributes:
        shares_draws: Whether, in training over both views, what the network draws by other ways
            than those modules is shared by the views, too; set by the owner.
        view_noise: How far equal views lie apart in training; set by the owner.
        frozen: Norms that stay in evaluation mode; set by the owner.
        new_head: The layer that has fresh weights among taken ones, by name; set by the owner.
        as_evaluated: Whether all of it does, without dropout too; set by the owner.

    Raises:
        UserError: The architecture has no module of that name.
    """

    def __init__(
        self,
        model: FeatureModel,
        at: str,
        views: Views | None = None,
        pool: PoolDS | None = None,
    ) -> None:
        super().__init__()
        self.model, self.at, self.views, self.pool = model, at, views, pool
        self.shares_draws, self.view_noise = False, 0.0
        self.frozen: tuple[nn.Module, ...] = ()
        self.as_evaluated, self.new_head = False, cast("str | None", None)
        model.pool = pool
        self._stage: Tensor | None = None
        if at not in ("features", "logits"):
            modules = dict(model.net.named_modules())
            if at not in modules:
                near = difflib.get_close_matches(at, modules, n=3)
                known = near or [name for name, _ in model.net.named_children()]
                raise UserError(
                    f"--ds-at {at}: model {model.name} has no such module; features, logits, or "
                    f"one as {', '.join(known)}"
                )
            modules[at].register_forward_hook(self._keep)

    @property
    def net(self) -> nn.Module:
        """The architecture as its library builds it."""
        return self.model.net

    def train(self, mode: bool = True) -> Self:
        """As nn.Module has it, but for what stays in evaluation mode."""
        super().train(mode and not self.as_evaluated)
        for norm in self.frozen:
            norm.eval()
        return self

    def forward(self, x: Tensor, n_clean: int | None = None) -> Outputs:
        """x (N, 3, H, W), its first n_clean rows clean views (None: rows are of one kind)."""
        if self.views is not None:
            self.views.n_clean, self.views.n_rows = n_clean, len(x)
        if self.shares_draws and self.training and n_clean is not None and n_clean < len(x):
            with SharedDraws(n_clean, len(x) - n_clean):
                return self._forward(x, n_clean)
        return self._forward(x, n_clean)

    def _forward(self, x: Tensor, n_clean: int | None) -> Outputs:
        if self.pool is not None and self.training and n_clean is not None:
            self.pool.n_clean = n_clean
            try:
                features, logits = self.model(x)
                return Outputs(features, logits, features, self.pool.take())
            finally:
                self.pool.forget()
        features, logits = self.model(x)
        if self.at == "features":
            return Outputs(features, logits, features)
        if self.at == "logits":
            return Outputs(features, logits, wide(logits))
        stage, self._stage = self._stage, None
        if stage is None:
            raise UserError(
                f"--ds-at {self.at}: model {self.model.name} does not call it; name another module"
            )
        if len(stage) != len(x):
            raise UserError(
                f"--ds-at {self.at}: its output has {len(stage)} rows for {len(x)} images, as of "
                "windows or positions; name a module whose rows are images"
            )
        return Outputs(features, logits, stage)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        del module, args
        try:
            self._stage = average_positions(output)
        except ValueError as error:
            raise UserError(f"--ds-at {self.at}: {error}") from None


def average_positions(output: object) -> Tensor:
    """A module's output as a representation: (N, C, H, W), (N, H, W, C), (N, L, C) -> (N, C).

    In float32 at least. The axes of positions of a square map are the equally long ones; with as
    many channels as rows it is taken as (N, C, H, W). What has no positions, (N, C), is copied.

    Raises:
        ValueError: The output is no square map of features.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        raise ValueError("its output is no map of features")
    if output.ndim == 2:
        return wide(output).clone()  # what runs next may work in place
    if output.ndim == 3:
        return wide(output).mean(1)
    _, a, b, c = output.shape
    if b == c:
        return wide(output).mean((2, 3))
    if a == b:
        return wide(output).mean((1, 2))
    raise ValueError(f"its output {tuple(output.shape)} is no square map of features")
