"""docs/commands.md, which `make options` writes: what --help of every other command says."""

from __future__ import annotations

import os
import subprocess
import sys

COMMANDS = (
    "evaluate",
    "reproduce",
    "prepare beton",
    "prepare tar",
    "prepare colormnist",
    "replay",
    "export",
    "doctor",
    "demo",
    "colormnist_demo",
)
_HEAD = """\
# Options of the other commands

What `--help` says, by `make options`; [those of fastsc.train](options.md) have a page of their own.
"""


def page() -> str:
    """A heading and a block of text for each command."""
    lines = [_HEAD]
    for command in COMMANDS:
        text = help_of(command)
        lines += [f"## {command}", "", "```text", text.strip(), "```", ""]
    return "\n".join(lines)


def help_of(command: str) -> str:
    """What a terminal of 100 columns shows."""
    words = [sys.executable, "-m", *f"fastsc.{command}".split(), "--help"]
    env = os.environ | {"COLUMNS": "100"}
    return subprocess.run(words, env=env, text=True, capture_output=True, check=True).stdout


if __name__ == "__main__":
    sys.stdout.write(page())
