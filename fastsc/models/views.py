"""Which rows of a forward pass are clean views and which are perturbed ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Views:
    """What the forward pass at hand holds: `n_clean` clean rows, then the perturbed ones.

    Perturbed row i is the partner of clean row i. One object per model, shared by its modules.

    Attributes:
        n_clean: None: all rows are of one kind.
        n_rows: Of the network's input.
    """

    n_clean: int | None = None
    n_rows: int = 0

    def rows_of(self, x: Tensor) -> tuple[int, int] | None:
        """How many rows of x, whatever an image has of them, are clean and how many perturbed.

        A network may cut an image into windows or heads, which then are its rows, one after the
        other. None: x is not made of both kinds of rows.
        """
        n, rows = self.n_clean, self.n_rows
        if n is None or n >= rows or x.ndim == 0 or len(x) == 0 or len(x) % rows:
            return None
        each = len(x) // rows
        return n * each, (rows - n) * each
