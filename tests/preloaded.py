"""What the fork server has imported before it forks: most of what a command's start takes.

The rest of numba's own modules are imported when it compiles or loads its first function.
"""

from contextlib import suppress

from numba.core.registry import cpu_target

import fastsc.evaluation.run
import fastsc.replaying.command
import fastsc.trainer  # noqa: F401
import tests.quick_ffcv  # noqa: F401
from fastsc.config.options import parse

with suppress(ImportError):
    import timm  # noqa: F401
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
parse(["imagenet", "--data", "."])
