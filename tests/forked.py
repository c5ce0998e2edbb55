"""Python's processes without their start: forked from one that has imported torch and fastsc.

Importing them takes 5 s of computing time, and most tests of commands want a process for its
signals, its death or its ranks, not for its imports. In a test with the fixture `forked`,
`subprocess.Popen` forks what begins with this interpreter, -m, -c or a script, from the standard
library's fork server; everything else starts as ever. What such a process does differ in: modules
are there already, PYTHON* variables change nothing any more, and nothing runs at exit. Tests of
these start a process of their own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preloaded"])


class ForkedPopen(subprocess.Popen[Any]):
    """subprocess.Popen, whose Python processes the fork server starts and waits for."""

    _process: multiprocessing.context.ForkServerProcess | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        if isinstance(args, str) or [*args][:1] != [sys.executable] or preexec_fn is not None:
            return super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]
        _, _, cwd, env, _, _, _, *files = rest[:13]
        new_session = rest[-2]
        p2cread, _, _, c2pwrite, _, errwrite = files
        streams = [
            Connection(os.dup(own if file == -1 else file))
            for own, file in enumerate((p2cread, c2pwrite, errwrite))
        ]
        try:
            self._process = _server.Process(
                target=_run,
                args=([*map(os.fspath, args)][1:], dict(os.environ if env is None else env),
                      os.fspath(cwd or os.getcwd()), streams, new_session),
            )  # fmt: skip
            self._process.start()
        finally:
            for stream in streams:
                stream.close()
            self._close_pipe_fds(*files)  # type: ignore[attr-defined]
        self.pid = self._process.pid
        self._child_created = True
        return None

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._process is None:
            return super()._internal_poll(*args, **options)  # type: ignore[misc, no-any-return]
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._process is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        self._process.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def _run(
    words: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    streams: Sequence[Connection],
    new_session: bool,
) -> None:
    """What the interpreter does with its command line, in the forked process."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering, closefd=False)  # noqa: SIM115, as long as the process
        for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
    )
    if tuple(words[:4]) == _TORCHRUN:
        _launch(int(words[4]), words[5:])
    _main(words)


def _main(words: Sequence[str]) -> None:
    option, name, *rest = words if words[0] in ("-m", "-c") else ["", *words]
    sys.argv = [option if option == "-c" else name, *rest]
    if option == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.path.insert(0, os.getcwd())
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(name, vars(module))
    else:
        sys.path.insert(0, os.path.dirname(name))
        runpy.run_path(name, run_name="__main__")


def _launch(n: int, words: Sequence[str]) -> NoReturn:
    """torchrun's part: n ranks; when one fails, SIGTERM to the others; a signal goes to all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "GROUP_WORLD_SIZE": 1, "GROUP_RANK": 0}
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **sizes}
    pids = []
    for rank in range(n):
        if not (pid := os.fork()):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in own.items()})
            _main(words)
            sys.exit(0)
        pids.append(pid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: [_kill(pid, number) for pid in pids])
    running, failed = set(pids), False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            failed = True
            time.sleep(0.1)  # the others may be about to end by themselves
            for other in running:
                _kill(other, signal.SIGTERM)
    sys.exit(int(failed))


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
