"""Checkpoints that a kill at any moment leaves whole, and the weights that a run exports."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from fastsc.cli.leftovers import claimed
from fastsc.cli.packages import needed
from fastsc.errors import UserError, first_line
from fastsc.pipelines.disk import doing
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.reading import NO_FILE, blamed, is_file, parse_json
from fastsc.run.folder import CHECKPOINT

State = dict[str, Any]

STATISTICS = "running_mean", "running_var"  # buffers that a training run that failed spoils


class Loaded(NamedTuple):
    """The newest whole checkpoint of a folder."""

    state: State
    path: Path
    skipped: list[str]
    """Newer checkpoints that could not be read: "NAME: reason"."""


def save(
    folder: Path | str, state: State, step: int, *, keep: int = 2, best: int | None = None
) -> Path:
    """Write folder/step-00000123.pt whole or not at all, then drop all but the newest `keep`.

    best: the step of one that stays, too, however old it is.

    state: tensors, numbers, strings, None, and lists and dicts of these: what torch.load reads
    back with weights_only=True. Raises UserError if the disk does not take it; the checkpoints
    that were there stay.
    """
    folder = Path(folder)
    path = folder / f"step-{step:08d}.pt"
    write_atomically(path, lambda temporary: _torch_save(state, temporary))
    # A later one than this was broken when the run resumed after it: it must not count as kept.
    saved = _checkpoints(folder)
    later = [other for other in saved if _step(other) > step]
    old = [other for other in saved[len(later) + keep :] if _step(other) != best]
    for useless in [*later, *old, *folder.glob(".step-*.part")]:
        useless.unlink(missing_ok=True)
    return path


def load_newest(folder: Path | str, *, map_location: str | torch.device = "cpu") -> Loaded | None:
    """The newest checkpoint that reads, with the broken ones that were passed over; None if none.

    Only tensors and plain values are unpickled (weights_only): a checkpoint runs no code.
    """
    skipped: list[str] = []
    for path in _checkpoints(Path(folder)):
        try:
            state = load(path, map_location=map_location)
        except MemoryError:
            raise  # it may be whole
        except OSError as error:  # so it may: a disk that fails for a moment, a wrong permission
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # noqa: BLE001, a broken pickle can raise anything
            skipped.append(f"{path.name}: {first_line(error)}")
            continue
        if not isinstance(state, dict):
            skipped.append(f"{path.name}: holds {type(state).__name__}, not a checkpoint")
            continue
        return Loaded(state, path, skipped)
    if skipped:
        raise UserError(
            f"no checkpoint in {folder} can be read ({'; '.join(skipped)}): "
            "remove them to start over"
        )
    return None


def load(path: Path, *, map_location: str | torch.device = "cpu") -> Any:
    """What `save` wrote; a broken file can raise anything."""
    with doing(f"reading {path}"):
        _check_sums(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def load_model_state(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """net.load_state_dict.

    Raises:
        UserError: `state` is another model's, with what differs; or the net does not take it, such
            as tensors that are sparse, quantized or without data, with torch's reason.
    """
    check_model_state(net, state, source)
    known = OrderedDict(state)
    # Of which version a module's tensors are stands beside them, where no file of ours has it, and
    # MNASNet's loads nothing without. Names and shapes are this version's.
    known._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        net.load_state_dict(known)
    except Exception as error:  # noqa: BLE001, a module's set_extra_state can raise anything
        # torch's own first line names the class alone.
        reason = str(error).partition("Error(s) in loading state_dict for ")[2].partition("\n")[2]
        line = reason.partition("\n")[0].strip() or first_line(error)
        raise UserError(f"{source} does not load: {type(error).__name__}: {line}") from None


def check_model_state(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises UserError, which names what differs, if `state` is another model's; by shapes and
    kinds of numbers alone.

    net: May be on torch's device "meta", where it takes no memory.
    """
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        # A module's extra state need not be a tensor.
        if isinstance(own[key], Tensor)
        and isinstance(state.get(key), Tensor)
        and state[key].shape != own[key].shape
    ]
    faults = [*shapes[:2]]
    if missing:
        faults.append(f"{len(missing)} tensors are missing there, {missing[0]} first")
    if extra:
        faults.append(f"{len(extra)} are unknown here, {extra[0]} first")
    if faults:
        raise UserError(f"{source} holds another model: {'; '.join(faults)}")
    # torch would cast the integers of a quantized network, without the scales that they need; of
    # its own quantized tensors it says so itself.
    for key, parameter in net.named_parameters(remove_duplicate=False):
        value = state.get(key)
        if not isinstance(value, Tensor) or value.is_quantized:
            continue
        if parameter.is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{source} does not load: {key} is {kind} there: weights of a quantized network?"
            )


def check_weights(net: nn.Module, name: str) -> None:
    """Raises UserError where weights or running statistics have no values, or not finite ones."""
    passed_over = masks(net)
    values = (*net.named_parameters(), *net.named_buffers())
    for key, value in ((k, v) for k, v in values if k not in passed_over):
        if value.is_meta or isinstance(value, nn.parameter.UninitializedParameter):
            raise UserError(f"model {name}: its weights have no values yet ({key}); load them")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"model {name}: its weights are not finite ({key}); take a checkpoint from before"
            )


def masks(net: nn.Module) -> frozenset[str]:
    """Buffers that no training spoils, and which may have any values: masks of attention are -inf.

    All but running statistics.
    """
    names = (name for name, _ in net.named_buffers())
    return frozenset(name for name in names if name.rpartition(".")[2] not in STATISTICS)


def rng_state() -> State:
    """torch's generators, of the CPU and of every GPU (the rest of a run is keyed, not drawn)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore `rng_state()`; GPUs that this machine lacks are passed over."""
    torch.set_rng_state(state["cpu"].cpu())
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), device)


def export_safetensors(
    path: Path | str, net: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a net's state, or one like it, under the architecture's own names, whole or not at all.

    metadata: any JSON values, kept as JSON strings (architecture, classes, mean, std, resolution,
    stem); `load_safetensors` gives them back. Pass the bare architecture, `model.net`.
    Raises UserError if the disk does not take it, or safetensors is not installed.
    """
    needed("safetensors", str(path))
    import safetensors.torch

    # A copy of each, on the CPU and row-major: safetensors refuses channels-last and shared memory.
    state = net.state_dict() if isinstance(net, nn.Module) else net
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    # In ASCII: a class folder's name need not be text that UTF-8 can hold, and comes back whole.
    texts = {key: json.dumps(value) for key, value in metadata.items()}

    def write(temporary: str) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, texts)
        except safetensors.SafetensorError as error:  # a full disk, among others
            raise OSError(str(error)) from None

    write_atomically(Path(path), write)


def load_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and metadata of a file of ours. UserError if it cannot be read."""
    metadata = read_metadata(path)
    with blamed(f"{path} is not a weights file of fastsc"), opened_safetensors(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, dict(metadata.values)


def read_metadata(path: Path | str) -> Fields:
    """The metadata of a file of ours, without its tensors; errors as of `load_safetensors`."""
    needed("safetensors", str(path))

    place = f"{path} is not a weights file of fastsc"
    with blamed(place):
        if not is_file(path):
            raise UserError(f"{place}: {NO_FILE}")
        with opened_safetensors(path) as file:
            texts: dict[str, str] = file.metadata() or {}
    values = {key: parse_json(text, f"{place}: {key}") for key, text in texts.items()}
    return Fields(values, place)


@contextlib.contextmanager
def opened_safetensors(path: Path | str) -> Iterator[Any]:
    """safetensors' own reader of a file of that format; its errors are its own, and OSError."""
    import safetensors

    # By its descriptor, since safetensors refuses a path that is no UTF-8.
    with (
        open(path, "rb") as opened,
        safetensors.safe_open(f"/dev/fd/{opened.fileno()}", framework="pt") as file,
    ):
        yield file


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first, by step."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if CHECKPOINT.fullmatch(p.name) and is_file(p)]
    return sorted(files, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _check_sums(path: Path) -> None:
    # torch.load does not compare the sums that torch.save writes: a flipped bit would pass unseen.
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"checksum of {broken} is wrong")


class _Watched:
    """A file to write to, each piece of which the disk has to take in time."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path

    def write(self, data: bytes) -> int:
        with doing(f"writing {self._path}"):
            return self._file.write(data)

    def flush(self) -> None:
        with doing(f"writing {self._path}"):
            self._file.flush()


def _torch_save(state: State, path: str) -> None:
    # Through Python's file: torch's own writer turns a full disk into a RuntimeError about offsets,
    # and, when it closes the archive after a failed write, hides the OSError of this one as well.
    with open(path, "wb") as file:
        try:
            torch.save(state, _Watched(file, path))  # type: ignore[arg-type]  # it can be written
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Temporary file next to it, fsync, rename, fsync of the folder: no reader sees half a file.

    Temporary files of the same name that killed processes left are removed.

    Args:
        path: The file; its folder is made.
        write: Writes the file of the name that it is given.

    Raises:
        UserError: The disk does not take it; what was there stays.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with contextlib.ExitStack() as resources:
            with doing(f"writing {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                resources.enter_context(claimed(temporary))
            write(str(temporary))
            with doing(f"writing {path}"):
                _fsync(temporary)
            with doing(f"writing {path}"):
                os.replace(temporary, path)
                _fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {first_line(error)}") from None
        raise


def _fsync(path: Path | str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
