"""Files that hold no weights are called what they are, in one line, and nothing in them is run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, load_source
from fastsc.loading.weight_files import Opaque, read_file


def saved(contents: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file, **options)
    return file.getvalue()


def in_numpy(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, np.zeros(3))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "something")
    return file.getvalue()


def in_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return file.getvalue()


LEGACY = {"_use_new_zipfile_serialization": False}
STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
LARGE = {"weight": torch.zeros(4096)}

NO_WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer, not the weights; fetch it again with: git lfs pull",
    ),
    "page": (
        lambda: b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>",
        "an HTML or XML page",
    ),
    "page in capitals": (
        lambda: b"<HTML><body>404</body></HTML>",
        "an HTML or XML page",
    ),
    "script page": (lambda: b"<script>location='x'</script>", "an HTML or XML page"),
    "error page": (lambda: b"<Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
    "declared XML": (lambda: b"<?xml version='1.0'?><Error/>", "an HTML or XML page"),
    "zeros": (lambda: bytes(5000), "zeros from its first byte"),
    "zstandard": (lambda: b"\x28\xb5\x2f\xfd" + bytes(99), "compressed by Zstandard"),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras and TensorFlow"),
    "keras 3": (lambda: zipped("model.weights.h5"), "a Keras or TensorFlow model"),
    "array": (lambda: in_numpy(np.save), "a NumPy array"),
    "arrays": (lambda: in_numpy(np.savez), "a NumPy archive"),
    "script": (scripted, "a TorchScript archive, whose code is not run"),
    "zip": (lambda: zipped("notes.txt"), "a zip archive that torch.save did not write"),
    "tar": (in_tar, "a tar archive"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(99), "compressed by gzip"),
    "json": (lambda: b'{"weight_map": {}}', "text (JSON)"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "noise": (lambda: b"noise", "no file that torch.save or safetensors wrote"),
    "cut": (lambda: saved(LARGE)[:9000], "a cut or damaged zip archive"),
    "cut, legacy": (lambda: saved(LARGE, **LEGACY)[:900], "cut or damaged? fetch it again"),
    "cut, safetensors": (lambda: save(LARGE)[:-9], "cut or damaged? fetch it again"),
    "model": (
        lambda: saved(nn.Sequential(nn.Linear(2, 2))),
        "a whole pickled model, which only its own code can read; save model.state_dict() with "
        "torch.save, or hand the model over with module:function",
    ),
    "model, legacy": (lambda: saved(nn.Linear(2, 2), **LEGACY), "a whole pickled model"),
}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("case", NO_WEIGHTS)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_file_without_weights_is_called_what_it_is(
    case: str, ending: str, tmp_path: Path
) -> None:
    content, words = NO_WEIGHTS[case]
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content())
    with pytest.raises(UserError) as caught:
        load_source("torchvision:mobilenet_v3_small", ModelOptions(weights=path))
    line = str(caught.value)
    assert line.startswith(f"--weights {path} cannot be read")
    assert words in line
    assert "\n" not in line
    assert "weights_only" not in line
    with pytest.raises(UserError, match="is not a weights file of fastsc") as caught:
        load_source(str(path))
    assert "\n" not in str(caught.value)


class RunsCode:
    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_nothing_in_a_file_is_run(options: Any, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    calls = [(os.system, f"touch {marker}"), (exec, f"open({str(marker)!r}, 'w')")]
    for i, (function, words) in enumerate(calls):
        path = tmp_path / f"{i}.pth"
        evil = {"x": RunsCode(function, words), "state_dict": STATE}
        path.write_bytes(saved(evil, **options))
        if function is os.system:
            with pytest.raises(UserError, match="reading it would run code of posix"):
                read_file(path, "it")
        else:
            assert isinstance(read_file(path, "it")["x"], Opaque)
        assert not marker.exists()


class Settings(dict[str, int]):
    """As Lightning's hyper-parameters."""


class Config:
    def __init__(self) -> None:
        self.depth = 3


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_objects_of_other_classes_do_not_keep_one_from_the_tensors(
    options: Any, tmp_path: Path
) -> None:
    contents = {
        "best": np.float64(0.7),
        "history": np.arange(3),
        "hyper_parameters": Settings(width=3),
        "config": Config(),
        "path": Path("x"),
        "by": collections.defaultdict(list, {"a": [1]}),
        "state_dict": STATE,
    }
    path = tmp_path / "w.ckpt"
    path.write_bytes(saved(contents, **options))
    found = read_file(path, "it")["state_dict"]
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_the_contents_count_and_not_the_files_ending(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.pth")
    torch.save(STATE, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = read_file(tmp_path / name, "it")
        assert all(torch.equal(found[key], STATE[key]) for key in STATE)
