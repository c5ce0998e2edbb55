"""What `fastsc.train` does with the words of its command line."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable

from fastsc.cli.entry import say
from fastsc.distributed.signals import EXIT_RESUMABLE, StopSignal
from fastsc.errors import LostContactError, PeerError, StalledError, UserError

RESUME = "--resume goes on from the last checkpoint"


def run(words: list[str], stop: StopSignal, conclude: Callable[..., object]) -> int:
    """Parses the options and trains; returns the exit status.

    conclude: See `training.loop.train`.

    Raises:
        UserError: A mistake; under torchrun a PeerError where another process says what it is.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # should a library crash the interpreter, stderr says where
    # Imported here, behind the signals' handlers: torch alone takes seconds.
    from fastsc.config.options import parse

    try:
        config = parse(words)
    except UserError as mistake:  # which every process of this machine sees, and one says so
        raise mistake if os.environ.get("LOCAL_RANK", "0") == "0" else PeerError from None
    from fastsc.training.loop import train

    try:
        return train(config, stop, conclude)
    except UserError:
        raise
    except (StalledError, LostContactError) as error:
        say("fastsc.train", f"{error}; {RESUME}")
        status = EXIT_RESUMABLE
    except Exception:
        if not _group_on_gpus():
            raise
        traceback.print_exc()
        status = 1
    if _group_on_gpus():
        # NCCL's threads may wait for ever for the others, and they for this process: all is
        # written, and it ends.
        sys.stderr.flush()
        os._exit(status)
    return status


def _group_on_gpus() -> bool:
    """Whether other processes can still be spoken to by NCCL."""
    import torch

    return torch.distributed.is_initialized() and torch.cuda.is_initialized()
