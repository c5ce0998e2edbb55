"""`python -m fastsc.train RECIPE --data DIR`: the command line of the main job.

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 stopped by a signal, resumable;
1 our own fault, with the traceback in the run's log.
"""

from __future__ import annotations

import sys

from fastsc.options import parse
from fastsc.pipelines.errors import UserError
from fastsc.signals import EXIT_RESUMABLE


def main(argv: list[str] | None = None) -> int:
    """Parses the options and trains; returns the exit status."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        from fastsc.trainer import train  # torch takes seconds; --help should not

        return train(config)
    except UserError as error:
        print(f"fastsc.train: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "fastsc.train: interrupted; --resume goes on from the last checkpoint", file=sys.stderr
        )
        return EXIT_RESUMABLE


if __name__ == "__main__":
    sys.exit(main())
