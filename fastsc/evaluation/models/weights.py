"""Weights of strangers' networks: out of a file in any of the usual forms, or from the network."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsc.cli.packages import needed
from fastsc.errors import UserError, first_line

CONTACT = 10.0  # seconds to wait for a server's answer
NESTED = "state_dict", "model", "net"  # where training scripts keep the weights in a checkpoint
PREFIXES = "module.", "_orig_mod."  # of DistributedDataParallel and torch.compile


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: .safetensors, or what torch.save wrote.

    Bare or in a checkpoint under "state_dict" or "model", with or without a wrapper's prefix.
    Nothing in the file is run.

    Raises:
        UserError: There is no such file, or it holds no weights.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(f"--weights {path}: {what}")
    state = _read(path)
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping):
        raise UserError(f"--weights {path}: holds {type(state).__name__}, not a state dict")
    found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not found or not all(isinstance(key, str) for key in found):
        raise UserError(f"--weights {path}: no tensors with names in it")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            needed("safetensors", str(path))
            from safetensors.torch import load_file

            return load_file(path)
        # torchvision's and timm's scripts keep their options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001, a broken pickle can raise anything
        raise UserError(f"--weights {path}: cannot be read ({first_line(error)})") from None


def n_outputs(state: Mapping[str, Tensor], net: nn.Module, n: int) -> int:
    """Outputs of the classifier whose weights these are; n where that cannot be told.

    Args:
        state: Of a network like `net`, but perhaps with another number of outputs.
        net: With n outputs.
    """
    found = set()
    for key, own in net.state_dict().items():
        shape = state[key].shape if key in state else own.shape
        if shape != own.shape:
            if own.shape[:1] != (n,) or own.shape[1:] != shape[1:]:
                return n  # of what does not fit, loading will tell
            found.add(shape[0])
    return found.pop() if len(found) == 1 else n


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
    """Without an answer from its server the hub's client looks at its cache alone.

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
