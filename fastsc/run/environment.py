"""Where a figure was made: versions, hardware, commit and command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "numba", "triton", "pillow", "fastsc")


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
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        versions[name] = version_of(name)
    # DALI's distribution is called by its CUDA version.
    dali = (version_of(f"nvidia-dali-cuda{cuda}") for cuda in ("130", "120", "110"))
    versions["nvidia-dali"] = next(filter(None, dali), None)
    if versions["fastsc"] is None:  # run from a checkout
        # Not by an import, which would be of all that stands above.
        versions["fastsc"] = sys.modules["fastsc"].__version__
    return versions


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
    """Commit that fastsc runs from, "-dirty" after it if tracked files were changed; else None."""
    package = Path(__file__).resolve().parents[1]
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
