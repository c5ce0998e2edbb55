"""A model's answers in passes of so many images at most, as the memory has room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

Answers = tuple[Tensor, Tensor]  # features (N, D), logits (N, C)


@dataclass(frozen=True)
class Passes:
    """Images in one pass at most; None: as many as there are.

    Attributes:
        forward: Where nothing is derived.
        backward: Where the images have a gradient, for which a pass keeps its activations.
        before: Is called before every pass with its images, and whether they have a gradient.
    """

    forward: int | None = None
    backward: int | None = None
    before: Callable[[int, bool], object] | None = None

    def answers(self, model: Callable[[Tensor], Answers], x: Tensor) -> Answers:
        """model(x) of images x (N, 3, H, W), pass after pass.

        The gradient with respect to x is that of one large pass. Where x does not fit into one
        pass, the backward computes each pass anew and keeps the activations of one at a time, for
        the time of another forward.
        """
        derived = torch.is_grad_enabled() and x.requires_grad
        size = self.backward if derived else self.forward

        def answer(some: Tensor) -> Answers:
            if self.before is not None:
                self.before(len(some), derived)
            return model(some)

        if size is None or len(x) <= size:
            return answer(x)
        if derived:
            # Stopped early, the model's forward would not let go of the features it holds.
            with set_checkpoint_early_stop(False):
                parts: list[Answers] = [
                    checkpoint(answer, some, use_reentrant=False, preserve_rng_state=False)
                    for some in x.split(size)
                ]
        else:
            parts = [answer(some) for some in x.split(size)]
        features, logits = (torch.cat(column) for column in zip(*parts, strict=True))
        return features, logits
