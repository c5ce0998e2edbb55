"""Reading files of others: whatever is in them, or they are, is one line and soon."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastsc.pipelines import files
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.reading import (
    load_arrays,
    parse_json,
    parse_line,
    read_text,
    require_file_or_nothing,
)


class Slow(io.FileIO):
    """A file of a network's disk, which gives a few bytes at a time."""

    def read(self, n: int = -1) -> bytes:
        return super().read(min(n, 7) if n >= 0 else n)


def test_an_image_that_comes_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(files, "open", lambda name, *_, **__: Slow(name), raising=False)
    assert files.read_file(files.Place(str(path), 100)) == bytes(range(100))
    for n in (90, 110):
        with pytest.raises(files.DecodeError, match=f"has changed since it was indexed .{n} bytes"):
            files.read_file(files.Place(str(path), n))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"^the file cannot be read: "):
        read_text(path, "the file")
    with pytest.raises(UserError, match="not a regular file"):
        require_file_or_nothing(path)


def test_a_text_is_bounded_and_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * 11)
    with pytest.raises(UserError, match=r"^f: more than"):
        read_text(tmp_path / "x", "f", most=10)
    assert read_text(tmp_path / "x", "f", most=11) == "a" * 11
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"^f: not a text file$"):
        read_text(tmp_path / "x", "f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        ("NaN", "NaN is no number"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("", "Expecting value"),
    ],
)
def test_what_is_no_json_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^f: not JSON: ") as caught:
        parse_json(text, "f")
    assert said in str(caught.value)


def test_json_of_many_short_lists_is_not_deep() -> None:
    assert len(parse_json("[" + ",".join(["[1]"] * 1000) + "]", "f")) == 1000
    assert parse_line('{"a": NaN}') == {"a": None}
    assert parse_line('{"a": ' + "[" * 5000) is None
    assert parse_line("[1]") is None


def test_an_archive_that_claims_too_much_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10**6, np.uint8))
    assert load_arrays(tmp_path / "x.npz", "f", 2 * 10**6)["a"].shape == (10**6,)
    with pytest.raises(UserError, match=r"^f: its arrays take"):
        load_arrays(tmp_path / "x.npz", "f", 10**5)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }\n" % 2**60
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"^f: "):
        load_arrays(tmp_path / "y.npz", "f", 10**5)
    (tmp_path / "z.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"^f: "):
        load_arrays(tmp_path / "z.npz", "f", 10**5)


def test_values_have_types_and_ranges() -> None:
    fields = Fields({"n": 3, "x": 1e400, "t": True, "s": "a", "l": ["a"], "big": 10**400}, "f")
    assert fields.whole("n") == 3
    assert fields.number("n") == 3
    assert fields.texts("l") == ("a",)
    for read in (
        lambda: fields.whole("t"),
        lambda: fields.whole("big"),
        lambda: fields.number("big"),
        lambda: fields.number("x"),
        lambda: fields.number("t"),
        lambda: fields.number("missing"),
        lambda: fields.text("n"),
        lambda: fields.text("s", ("b", "c")),
        lambda: fields.texts("s"),
        lambda: fields.flag("n"),
        lambda: fields.inner("l"),
        lambda: fields.numbers("l", 1, 0, 1),
    ):
        with pytest.raises(UserError, match=r"^f: ") as caught:
            read()
        assert len(str(caught.value)) < 150


class Runs:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_arrays_that_are_pickles_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([Runs(tmp_path / "ran")], object))
    with np.load(tmp_path / "x.npz", allow_pickle=True) as arrays:
        assert arrays["a"].shape == (1,)
    (tmp_path / "ran").rmdir()  # so it would
    with pytest.raises(UserError, match="the file"):
        load_arrays(tmp_path / "x.npz", "the file", 10_000)
    assert not (tmp_path / "ran").exists()
