"""What a person reads: standard streams that never fail the work, and rich's console on them.

A pipe that `head` closed, a terminal that is gone, a full disk under a redirected output, an
encoding without `×`: none of them may end a run whose product is its files. A command whose product
is its output asks `require_output` in the end.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from fastsc.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class _Nowhere(io.TextIOBase):
    """In place of a stream that is closed from the start, which Python has as None."""

    def write(self, text: str) -> int:
        return len(text)


class TolerantStream:
    """A text stream whose writes never raise; all else is the underlying stream's.

    Characters that its encoding lacks are written as backslash escapes, and so are the surrogates
    by which Python holds file names that are no UTF-8.

    Attributes:
        failure: Of the first write that did not arrive, None if all did.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = _Nowhere() if stream is None else stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes what can be written; the number of characters, as if all had been."""
        with self._tolerated():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # raised before any of it is written
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._tolerated():
            self._stream.flush()

    def isatty(self) -> bool:
        """False, too, where the stream is closed."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
        except ValueError as error:  # a closed file
            self.failure = self.failure or OSError(errno.EBADF, str(error))


def tolerant(stream: TextIO | None) -> TextIO:
    """The stream as a TolerantStream, if it is none yet."""
    return cast(TextIO, stream if isinstance(stream, TolerantStream) else TolerantStream(stream))


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within the context stdout and stderr are TolerantStreams, and a closed one is /dev/null.

    Libraries that write there are covered, too. In the end what could not be written is dropped,
    since Python would try once more when it shuts down, and change the exit status.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(tolerant, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for own in (sys.__stdout__, sys.__stderr__):
            if own is not None and own in before:
                _drop_unwritten(own)


def printable(name: str) -> str:
    """A name as text: its bytes that are no UTF-8, which Python holds as surrogates, escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_line(line: str) -> None:
    """A line on stdout, there at once and never broken."""
    stdout = tolerant(sys.stdout)
    stdout.write(f"{line}\n")
    stdout.flush()


def require_output() -> None:
    """For a command whose product is its output, at its end.

    A closed pipe is no failure: whoever closed it, such as `head`, has read what they wanted.

    Raises:
        UserError: stdout could not be written.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None and failure.errno != errno.EPIPE:
        raise UserError(f"stdout cannot be written: {failure.strerror}")


def open_console(*, soft_wrap: bool = False) -> Console | None:
    """On stdout, without colors for numbers; None where rich is missing.

    soft_wrap: Lines stay whole, however narrow the terminal.
    """
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=tolerant(sys.stdout), highlight=False, soft_wrap=soft_wrap)


def write_table(table: RenderableType, *, columns: int = 80) -> None:
    """A table of rich's on stdout, as wide as the terminal, or as these columns elsewhere."""
    from rich.console import Console

    stdout = tolerant(sys.stdout)
    Console(file=stdout, width=None if stdout.isatty() else columns, highlight=False).print(table)


def _open_closed_descriptors() -> None:
    # `2>&-`: the next file that is opened would get the number, and what C code says would go
    # there.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            else:
                os.set_inheritable(number, True)


def _drop_unwritten(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        with suppress(OSError):
            stream.flush()
    except ValueError:  # closed
        pass
