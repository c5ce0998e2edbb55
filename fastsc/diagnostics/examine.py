"""Runs probes: each is a process of its own with a time limit.

What is tried may crash the interpreter or hang. A row that works was really tried: a pipeline
handed over a batch, a decoder decoded, a compiler compiled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from fastsc.cli.children import Children
from fastsc.cli.leftovers import in_use, remove_stale
from fastsc.diagnostics.catalog import Probe, Result
from fastsc.errors import UserError

PREFIX = "fastsc-doctor-"
YOUNG = 60.0  # seconds, for a folder to be locked after it was made
MAX_AT_ONCE = 8  # a probe holds up to 1 GiB, on a GPU too


def examine(wanted: Sequence[Probe], tell: Callable[[Result], None] | None = None) -> list[Result]:
    """Runs probes, as many at once as there are cores: `tell` gets a result as soon as it is known,
    the list has them in the order of the probes."""
    futures: dict[Probe, Future[Result]] = {}
    children = Children()
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    remove_stale(_old_folders())
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder,
        in_use(Path(folder)),
        ThreadPoolExecutor(min(n_cores, MAX_AT_ONCE)) as pool,
    ):
        # What others wait for comes first, so that a waiting thread never waits for a place.
        names = {probe.after for probe in wanted}
        for probe in sorted(wanted, key=lambda p: (p.name not in names, bool(p.after), not p.slow)):
            before = [future for p, future in futures.items() if p.name == probe.after]
            futures[probe] = pool.submit(_try, probe, Path(folder), before, children)
        try:
            for future in as_completed(futures.values()):
                if tell is not None:
                    tell(future.result())
        except KeyboardInterrupt:
            children.end()
            pool.shutdown(cancel_futures=True)
            raise
    return [futures[probe].result() for probe in wanted]


def _old_folders() -> list[Path]:
    """The folders of other doctors, but for one that may not have been locked yet.

    Raises:
        UserError: No folder for temporary files can be written, as on a disk that is full.
    """
    folders, now = list[Path](), time.time()
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}; TMPDIR=FOLDER takes another") from None
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it has been removed in the meantime
            if now - path.stat().st_mtime > YOUNG:
                folders.append(path)
    return folders


def _try(probe: Probe, folder: Path, before: list[Future[Result]], children: Children) -> Result:
    if not all(future.result().works for future in before):
        return Result(probe, False, f"not tried: {probe.after} does not work")
    home = Path(tempfile.mkdtemp(dir=folder))
    variables = {"OMP_NUM_THREADS": "1"} | os.environ | {"TMPDIR": str(home)}
    # What was compiled at another time says nothing of the compiler that is here now.
    variables |= {"TORCHINDUCTOR_CACHE_DIR": str(home), "TRITON_CACHE_DIR": str(home / "triton")}
    answer, errors = home / "answer", home / "errors"
    status: int | None = None
    # Files, since a pipe ends only when whatever else the probe started has ended, too.
    with open(answer, "wb") as out, open(errors, "wb") as err, suppress(subprocess.TimeoutExpired):
        command, silent = [sys.executable, *probe.command], subprocess.DEVNULL
        status = children.run(
            command, stdin=silent, stdout=out, stderr=err, env=variables, timeout=probe.timeout
        ).returncode
    reply = None
    with suppress(ValueError, TypeError, IndexError):  # whatever was printed before a crash
        reply = dict(json.loads(_lines(answer)[-1]))
    if status == 0 and reply is not None:
        works = bool(reply["works"])
        remedy = None if works else reply["remedy"] or probe.remedy
        return Result(probe, works, " ".join(reply["detail"].split()), remedy)
    if status is None:
        how = f"hangs: ended after {probe.timeout:g} s"
    elif status < 0:
        how = f"crashed: {signal.strsignal(-status)} (signal {-status})"
    else:
        how = f"ended with status {status}"
    if reply is not None and reply["works"]:
        how = f"worked, then {how}"
    last = "".join(f"; {line[:300]}" for line in _lines(errors)[-1:])
    return Result(probe, False, f"{how}{last}", probe.remedy)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
