"""`python -m fastsc.prepare WHAT --out DIR`: makes data in the form that training takes.

Exit status: 0 done; 2 the user's mistake, one line on stderr and nothing written; 130 interrupted,
nothing written.
"""

from __future__ import annotations

import sys

from fastsc.cli.parser import Parser
from fastsc.datasets import beton, colormnist
from fastsc.distributed.signals import interrupted_by_sigterm
from fastsc.errors import UserError

# Each module has `add_arguments(parser)` and `run(args) -> str`, and imports what is slow in `run`.
COMMANDS = {
    "beton": (beton, "betons of an ImageFolder, FFCV's files, for --pipeline ffcv"),
    "colormnist": (colormnist, "an ImageFolder of MNIST digits whose colour tells their class"),
}


def main(argv: list[str] | None = None) -> int:
    """Parses the options and does the work; returns the exit status."""
    parser = Parser(prog="python -m fastsc.prepare", description="Make data for fastsc.train.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"Make {summary}.")
        module.add_arguments(command)
    try:
        args = parser.parse_args(argv)
        with interrupted_by_sigterm():
            print(COMMANDS[args.command][0].run(args))
    except UserError as mistake:
        print(f"fastsc.prepare: {' '.join(str(mistake).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastsc.prepare: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
