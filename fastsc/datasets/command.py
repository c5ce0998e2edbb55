"""`fastsc.prepare`: which data it makes, and the command line of each."""

from __future__ import annotations

from fastsc.cli.console import write_line
from fastsc.cli.parser import Parser
from fastsc.datasets import beton, colormnist, tar

# Each module has `add_arguments(parser)` and `run(args) -> str`, and imports what is slow in `run`.
COMMANDS = {
    "beton": (beton, "betons of an ImageFolder, FFCV's files, for --pipeline ffcv"),
    "tar": (tar, "tars of an ImageFolder, which training reads without unpacking them"),
    "colormnist": (colormnist, "an ImageFolder of MNIST digits whose color tells their class"),
}


def run(words: list[str]) -> int:
    """Parses the options and does the work."""
    parser = Parser(prog="python -m fastsc.prepare", description="Make data for fastsc.train.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"Make {summary}.")
        module.add_arguments(command)
    args = parser.parse_args(words)
    write_line(COMMANDS[args.command][0].run(args))
    return 0
