"""`python -m fastsc.train RECIPE --data DIR`: the command line of the main job.

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 stopped by a signal, cut off from
the run's other processes or kept waiting by a disk that hangs: resumable; 1 our own fault, with the
traceback in the run's log.
"""

from __future__ import annotations

import faulthandler
import os
import sys

from fastsc.options import parse
from fastsc.pipelines.errors import LostContactError, PeerError, UserError
from fastsc.pipelines.threads import StalledError
from fastsc.signals import EXIT_RESUMABLE, StoppedEarly


def main(argv: list[str] | None = None) -> int:
    """Parses the options and trains; returns the exit status."""
    if not faulthandler.is_enabled():
        faulthandler.enable()  # should a library crash the interpreter, its last words say where
    try:
        try:
            config = parse(sys.argv[1:] if argv is None else argv)
        except UserError:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                return 2  # every process of this machine sees it, and one says so
            raise
        from fastsc.trainer import train  # torch takes seconds; --help should not

        return train(config)
    except PeerError:
        return 2  # the rank whose mistake it is says so
    except UserError as error:
        print(f"fastsc.train: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (LostContactError, StalledError) as error:
        print(f"fastsc.train: {error}; --resume goes on from the last checkpoint", file=sys.stderr)
        return EXIT_RESUMABLE
    except StoppedEarly as stopped:
        print(f"fastsc.train: stopped by {stopped} before the first step", file=sys.stderr)
        return EXIT_RESUMABLE
    except KeyboardInterrupt:
        print(
            "fastsc.train: interrupted; --resume goes on from the last checkpoint", file=sys.stderr
        )
        return EXIT_RESUMABLE


if __name__ == "__main__":
    sys.exit(main())
