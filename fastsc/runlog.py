"""A run's log.jsonl: one JSON object a line, each on disk as soon as it is known."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastsc.pipelines.errors import UserError

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "numba", "triton", "pillow", "fastsc")


class RunLog:
    """Appends to a JSONL file; first drops a last line that a crash tore.

    `dropped` is the number of characters that were removed, 0 for a whole log. Every line is
    given to the operating system at once, so that a killed process loses none, and a line for which
    the disk has no room leaves no half of it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = _drop_torn_line(self.path)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115, closed in close()
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def event(self, event: str, /, **fields: Any) -> None:
        """Write {"event": event, …fields}: NaN and infinity as null, tensors of one as numbers.

        Raises:
            UserError: The disk does not take it.
        """
        line = json.dumps({"event": event} | fields, default=_plain, allow_nan=True)
        if "NaN" in line or "Infinity" in line:  # rare, or a path that is called so
            line = json.dumps(_finite(json.loads(line)), allow_nan=False)
        data = (line + "\n").encode("utf-8")
        try:
            end = self._file.seek(0, os.SEEK_END)
            if (n := self._file.write(data)) < len(data):
                self._file.truncate(end)
                raise OSError(0, f"{n} of {len(data)} bytes were written: the disk is full")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read(path: Path | str) -> list[dict[str, Any]]:
    """The whole lines of a log, in order; a torn last one is left out."""
    lines = Path(path).read_bytes().split(b"\n")
    return [event for line in lines if (event := _parse(line)) is not None]


def environment() -> dict[str, Any]:
    """For the header: versions, hardware, commit of the checkout, command line, process."""
    return {
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "command": command(),
        "process": {"host": socket.gethostname(), "pid": os.getpid()},
    }


def versions() -> dict[str, str | None]:
    """Version by package, null where one is not installed; DALI under `nvidia-dali`."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = version_of(name)
    # DALI's distribution is called by its CUDA version.
    dali = (version_of(f"nvidia-dali-cuda{cuda}") for cuda in ("130", "120", "110"))
    found["nvidia-dali"] = next(filter(None, dali), None)
    if found["fastsc"] is None:  # run from a checkout
        import fastsc

        found["fastsc"] = fastsc.__version__
    return found


def hardware() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory in GiB, names of the GPUs."""
    import torch

    model = platform.processor() or platform.machine()
    memory = None
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
        model = next(names, model)
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        pass  # not Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": cores, "memory_gib": memory, "gpus": gpus}


def commit() -> str | None:
    """Commit that fastsc runs from, "-dirty" behind it if tracked files were changed; else None."""
    package = Path(__file__).resolve().parent
    # A fastsc in a virtual environment inside somebody's repository is not of that repository.
    if not (package.parent / ".git").exists():
        return None
    try:
        head = _git(package, "rev-parse", "HEAD").strip()
        changed = _git(package, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changed else "")


def command() -> str:
    """The command line as one would type it again, without the interpreter's folder."""
    words = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]] if sys.orig_argv else sys.argv
    return shlex.join(words)


def version_of(package: str) -> str | None:
    """A distribution's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout


def _plain(value: Any) -> Any:
    """What json does not know: tensors and numpy values by their numbers, paths by their text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be logged")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _drop_torn_line(path: Path) -> int:
    """Cut the file behind its last whole line, if anything lies there."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    # A machine that lost power may leave zeros, and a newline behind them.
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if _parse(data[start:end]) is not None:
            break
        end = start
    if end < len(data):
        with open(path, "r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return len(data) - end
