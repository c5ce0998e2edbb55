"""Two machines out of one: network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOSTS = ("fastsc-a", "fastsc-b")


def permitted() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "fastsc-probe"], capture_output=True)
    subprocess.run(["ip", "netns", "del", "fastsc-probe"], capture_output=True)
    return made.returncode == 0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Within the context: 10.77.0.1 and 10.77.0.2, each with a loopback of its own."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        cable = f"link add fsc0 netns {HOSTS[0]} type veth peer fsc1 netns {HOSTS[1]}"
        ip(*cable.split())
        for number, host in enumerate(HOSTS):
            ip("-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"fsc{number}")
            for device in (f"fsc{number}", "lo"):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def cable(state: str) -> None:
    """Plugs it in, "up", or pulls it, "down": packets get lost, and nobody is told."""
    ip("-n", HOSTS[0], "link", "set", "fsc0", state)


def start(number: int, port: int, *words: str, **environment: str) -> subprocess.Popen[str]:
    """One process under torchrun on host 0 or 1, of two; host 0 keeps the rendezvous."""
    command = ["ip", "netns", "exec", HOSTS[number], sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", "2", "--nproc-per-node", "1"]
    if not any(word.startswith("--rdzv") for word in words):
        command += ["--node-rank", str(number)]
        command += ["--master-addr", "10.77.0.1", "--master-port", str(port)]
    return subprocess.Popen(
        [*command, *words],
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": f"fsc{number}", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
