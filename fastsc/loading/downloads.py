"""Weights of others' networks: how many outputs they are for, and their download."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fastsc.errors import UserError, first_line

CONTACT = 10.0  # seconds to wait for a server's answer


def n_outputs(state: Mapping[str, Any], net: nn.Module, n: int) -> int:
    """Outputs of the classifier whose weights these are; n where that cannot be told.

    Args:
        state: Of a network like `net`, but perhaps with another number of outputs.
        net: With n outputs.
    """
    sizes = set()
    for key, own in net.state_dict().items():
        if not isinstance(own, Tensor) or not isinstance(state.get(key), Tensor):
            continue  # of what is missing, loading will tell
        shape = state[key].shape
        if shape != own.shape:
            if own.shape[:1] != (n,) or own.shape[1:] != shape[1:]:
                return n  # of what does not fit, loading will tell
            sizes.add(shape[0])
    return sizes.pop() if len(sizes) == 1 else n


@contextlib.contextmanager
def downloads(name: str) -> Iterator[None]:
    """Inside, pretrained weights are fetched; where that fails, it is one line within seconds.

    Raises:
        UserError: They cannot be had.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONTACT)
    try:
        with _hub_offline_if_unreachable(name):
            yield
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"model {name}: its pretrained weights cannot be had ({first_line(error)}); name a "
            "file of them with --weights FILE, or take fresh ones with --no-pretrained"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _hub_offline_if_unreachable(name: str) -> Iterator[None]:
    """Without an answer from its server the hub's client uses its cache alone.

    It would otherwise try for most of a minute.
    """
    if not name.startswith("timm:"):
        yield
        return
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        yield
        return
    before = hub.constants.HF_HUB_OFFLINE
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=CONTACT)
    except Exception:  # noqa: BLE001, whatever its client of the day raises
        hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.constants.HF_HUB_OFFLINE = before
