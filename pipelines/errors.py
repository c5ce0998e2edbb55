"""The one exception that a command turns into a line on stderr and exit status 2."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake. The message is one line that says what is wrong and what to do."""


class LostContactError(RuntimeError):
    """The other processes of the run cannot be reached: one line; resumable."""


class PeerError(UserError):
    """Another process of the run met the mistake, and says what it is: this one only ends."""
