"""Files of weights: what one is, by its first bytes, and its contents, of which nothing is run."""

from __future__ import annotations

import contextlib
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch

from fastsc.cli.packages import needed
from fastsc.errors import UserError, first_line
from fastsc.run.checkpoint import opened_safetensors

SAVE = "save model.state_dict() with torch.save"
AGAIN = "fetch it again"
HEAD = 512  # bytes that tell formats apart
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's before torch 1.6

# First bytes -> what such a file is, and what to do.
_MAGIC = {
    b"version https://git-lfs": f"a Git LFS pointer, not the weights; {AGAIN} with: git lfs pull",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write; convert it for torch",
    b"\x93NUMPY": f"a NumPy array; {SAVE}",
    b"GGUF": f"a GGUF file; {SAVE}",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"7z\xbc\xaf\x27\x1c": "compressed by 7-Zip; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it",
}
_WHOLE = (
    f"a whole pickled model, which only its own code can read; {SAVE}, or hand the model over with "
    "module:function"
)


class Opaque:
    """Stands for an object of a class that is not read: options, dates, a whole model."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _RefusedError(Exception):
    """What the file is, and why it is not read."""


def is_safetensors(path: Path) -> bool:
    """Whether the first bytes are a safetensors file's: the length of a JSON header, and its {."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def foreign_format(path: Path) -> str | None:
    """What a file is that neither torch.load nor safetensors reads, with advice; None: one does."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return f"empty; {AGAIN}"
    if not head.strip(b"\0"):
        return f"zeros from its first byte, as of a download that was interrupted; {AGAIN}"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    if re.match(rb"\s*<[!?a-z]", head.removeprefix(b"\xef\xbb\xbf").lower()):
        return f"an HTML or XML page, not weights; {AGAIN} from the address of the file itself"
    if head.startswith(b"PK"):
        return _foreign_zip(path)
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model; convert it for torch"
    if head[:1] == b"\x08" and (b"onnx" in head.lower() or b"pytorch" in head.lower()):
        return f"an ONNX model; {SAVE}"
    if head.lstrip()[:1] in (b"{", b"["):
        return "text (JSON), not weights; name the file that holds the tensors"
    if tarfile.is_tarfile(path):
        return "a tar archive; unpack it"
    if is_safetensors(path) or head.startswith(LEGACY):
        return None
    if head[:1] == b"\x80":
        return f"a pickle that torch.save did not write; {SAVE}"
    return f"no file that torch.save or safetensors wrote; {SAVE}"


def _foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"a cut or damaged zip archive, as torch.save writes; {AGAIN}"
    ends = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in ends or any(end.startswith("code/") for end in ends):
        return f"a TorchScript archive, whose code is not run; {SAVE} of the model it was made from"
    if any("serialized_exported_program" in name or "archive_format" in name for name in names):
        return f"an exported program (torch.export); {SAVE} of the model it was made from"
    if "data.pkl" in ends:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz); {SAVE}"
    if any(name.endswith((".h5", "saved_model.pb")) for name in names):
        return "a Keras or TensorFlow model; convert it for torch"
    return "a zip archive that torch.save did not write; unpack it"


def read_file(path: Path, title: str) -> Any:
    """The contents of a file of safetensors' or torch.save's, whatever its name ends in.

    Nothing in the file is run: of classes other than tensors and plain containers there is an
    `Opaque` in their place, whose class has the name of theirs.

    Args:
        path: The file.
        title: What it is called in messages.

    Raises:
        UserError: There is no such file, or it is none of these; one line that says what it is.
    """
    if not path.is_file():
        raise UserError(f"{title}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        if (what := foreign_format(path)) is not None:
            raise UserError(f"{title} cannot be read: it is {what}")
        contents = _load_safetensors(path) if is_safetensors(path) else _load_pickled(path)
    except (UserError, MemoryError):
        raise
    except _RefusedError as error:
        raise UserError(f"{title} cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001, a broken file can raise anything
        # What torch says of the file, without its lecture on reading all the same.
        match = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = match[1].partition(". Please use")[0] if match else first_line(error)
        raise UserError(f"{title} cannot be read ({reason}); cut or damaged? {AGAIN}") from None
    if isinstance(contents, Opaque):
        raise UserError(f"{title} cannot be read: it is {_WHOLE} ({type(contents).__name__})")
    return contents


def _load_safetensors(path: Path) -> Any:
    needed("safetensors", str(path))
    with opened_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _load_pickled(path: Path) -> Any:
    """torch.load of tensors and plain containers alone, other classes being made `Opaque`."""
    names: dict[str, None] = {}  # in order
    # Of files from before torch 1.6 they are told one by one below.
    with contextlib.suppress(Exception), path.open("rb") as file:
        names = dict.fromkeys(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    kind: Literal["opaque", "mapping"] = "opaque"
    while True:
        known: list[Any] = [(_stand_in(name, kind), name) for name in names]
        try:
            # Open, since torch would take the ending of a name for the format.
            with torch.serialization.safe_globals(known), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            words = str(error)
            if (match := re.search(r"module (\w+) is blocked", words)) is not None:
                raise _RefusedError(f"reading it would run code of {match[1]}") from None
            if "Only persistent_load of storage" in words:  # how torch < 1.6 kept a model
                raise _RefusedError(f"it is {_WHOLE}") from None
            match = re.search(r"Unsupported global: GLOBAL (\S+) was not", words)
            if match is not None and match[1] not in names:
                name = match[1]
                # torch leaves this module's name out of what it says.
                names |= {name if "." in name else f"builtins.{name}": None}
            elif "Can only SETITEM" in words and kind == "opaque":
                kind = "mapping"  # a class of dictionaries, such as defaultdict
            else:
                raise


def _stand_in(name: str, kind: Literal["opaque", "mapping"]) -> type:
    """A class to be read in place of another's.

    torch fills dictionaries of its own three classes alone, which a class of dictionaries must be
    made of; what NumPy pickles is filled in otherwise.
    """
    if kind == "opaque" or name.startswith("numpy"):
        return type(name, (Opaque,), {})
    return type(name, (), {"__new__": _empty})


def _empty(*args: object) -> OrderedDict[object, object]:
    del args
    return OrderedDict()
