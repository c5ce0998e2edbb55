"""FFCV, imported without what its import compiles for 5 s: numba's dictionary of two words.

FFCV looks words up in it from Python alone, for which Python's own will do.
"""

from contextlib import suppress
from unittest.mock import patch

with suppress(ImportError), patch("numba.typed.Dict", dict):
    import ffcv.libffcv  # noqa: F401
