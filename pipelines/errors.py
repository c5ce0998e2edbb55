"""What a command turns into one line on stderr and an exit status, and no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later
LONGEST = 400  # characters of another library's message: some list every kernel or tensor
SPEAKING = (RuntimeError, ValueError, AssertionError)  # libraries' errors that say what is wrong


class UserError(ValueError):
    """A user's mistake. The message is one line that says what is wrong and what to do."""


class PeerError(UserError):
    """Another process of the run met the mistake, and says what it is: this one only ends."""


class LostContactError(RuntimeError):
    """The other processes of the run cannot be reached: one line; resumable."""


class StalledError(Exception):
    """Nothing came for as long as the user is willing to wait; the message says what from."""


@contextmanager
def one_line(what: str, kinds: tuple[type[Exception], ...] = SPEAKING) -> Iterator[None]:
    """Within the context, what a model's code raises is a UserError that begins with `what`.

    kinds: What is caught. An exception's type is in the line unless it is of SPEAKING.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        kind = "" if isinstance(error, SPEAKING) else f"{type(error).__name__}: "
        raise UserError(f"{what}: {kind}{first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What a library's error says, as the end of a line of ours; its type where it says nothing.

    Of more than `LONGEST` characters, the beginning.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    line = " ".join((lines[0] if lines else type(error).__name__).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"
