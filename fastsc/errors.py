"""The exceptions that commands turn into a line on stderr. They are defined on the floor below."""

from fastsc.pipelines.errors import (
    EXIT_RESUMABLE,
    SPEAKING,
    LostContactError,
    PeerError,
    StalledError,
    UserError,
    first_line,
    one_line,
)

__all__ = [
    "EXIT_RESUMABLE",
    "SPEAKING",
    "LostContactError",
    "PeerError",
    "StalledError",
    "UserError",
    "first_line",
    "one_line",
]
