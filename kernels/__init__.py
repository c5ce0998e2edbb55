"""Pure functions on arrays: paired views of images, the front-end, the distance of
representations.

Each has a plain torch reference and faster implementations behind one `impl=` argument. Nothing in
this package imports the rest of the program.
"""

from fastsc.kernels.distance import ds
from fastsc.kernels.front import front_end
from fastsc.kernels.pooling import pool_ds
from fastsc.kernels.views import normalize, pair_view, perturb

__all__ = ["ds", "front_end", "normalize", "pair_view", "perturb", "pool_ds"]
