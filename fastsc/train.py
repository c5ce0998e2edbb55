"""`python -m fastsc.train RECIPE --data DIR`: the command line of the main job.

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 stopped by a signal, cut off from
the run's other processes or kept waiting by a disk that hangs: resumable; 1 our own fault, with the
traceback in the run's log.
"""

from __future__ import annotations

import faulthandler
import os
import sys

from fastsc.distributed.signals import EXIT_RESUMABLE, StoppedEarly, StopSignal, ignore_signals
from fastsc.errors import LostContactError, PeerError, UserError


def main(argv: list[str] | None = None) -> int:
    """Parses the options and trains; returns the exit status."""
    if not faulthandler.is_enabled():
        faulthandler.enable()  # should a library crash the interpreter, its last words say where
    try:
        with StopSignal() as stop:
            return _main(sys.argv[1:] if argv is None else argv, stop)
    except PeerError:
        return 2  # the rank whose mistake it is says so
    except UserError as error:
        _say(str(error))
        return 2
    except StoppedEarly as stopped:
        _say(f"stopped by {stopped} before the first step")
        return EXIT_RESUMABLE
    except KeyboardInterrupt:
        _say("interrupted; --resume goes on from the last checkpoint")
        return EXIT_RESUMABLE


def _main(argv: list[str], stop: StopSignal) -> int:
    # Imported here, behind the signals' handlers: torch alone takes seconds.
    from fastsc.config.options import parse

    try:
        config = parse(argv)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return 2  # every process of this machine sees it, and one says so
        raise
    from fastsc.errors import StalledError
    from fastsc.training.loop import train

    try:
        return train(config, stop)
    except StalledError as error:
        _say(f"{error}; --resume goes on from the last checkpoint")
    except LostContactError as error:
        _say(f"{error}; --resume goes on from the last checkpoint")
        if config.run.device != "cpu" and _on_gpu():
            # NCCL's threads may wait for ever for the others: no farewell, all is written.
            sys.stderr.flush()
            os._exit(EXIT_RESUMABLE)
    return EXIT_RESUMABLE


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_initialized()


def _say(line: str) -> None:
    print(f"fastsc.train: {' '.join(line.split())}", file=sys.stderr)


if __name__ == "__main__":
    status = main()
    ignore_signals()  # a second one, while Python shuts down, would change the status
    sys.exit(status)
