"""Whatever is in a list of images or an FFCV dataset; and a spoilt cache, which is made again."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsc import prepare
from fastsc.errors import UserError
from fastsc.evaluation.results.store import Store
from fastsc.pipelines import BetonIndex, cache, open_beton, scan
from fastsc.pipelines.beton import _read_block
from fastsc.pipelines.files import read_file
from tests.fuzzing import damaged, fuzzed, reads
from tests.pipelines.conftest import packed


@pytest.fixture
def tars(image_folder: Path, tmp_path: Path) -> Path:
    """Two tars, one of them cut."""
    folder = packed(image_folder, tmp_path / "tars", 100_000) / "train"
    first = folder / "00000.tar"
    first.write_bytes(first.read_bytes()[:-700])
    return folder


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_an_index_cache(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("FASTSC_CACHE_DIR", home)
        table = cache.Table(np.ones(3, np.int32), np.ones(3, np.int32), {1: "cut"}, frozenset([2]))
        cache.store(Path("x"), "key", table)
        (file,) = Path(home).iterdir()
        with np.load(file) as stored:
            columns = {name: stored[name] for name in stored.files}
        name = data.draw(st.sampled_from(sorted(columns)))
        odd = data.draw(st.sampled_from([
            np.zeros(0), np.array("x"), np.array(3), np.full(3, -1, np.int32), np.ones((3, 2)),
            np.array([2**40]), np.array("[" * 5000), np.array('{"9": "x"}'), np.array('{"a": 1}'),
        ]))  # fmt: skip
        file.write_bytes(archive(**{**columns, name: odd}))
        found = cache.load(Path("x"), "key", 3)
        assert found is None or (found.heights == 1).all()
        file.write_bytes(data.draw(damaged(archive(**columns))))
        cache.load(Path("x"), "key", 3)


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_a_cache_of_tars(data: st.DataObject, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("FASTSC_CACHE_DIR", home)
        index = scan(tars, progress=False)
        (file,) = Path(home).glob("tars-*")
        with np.load(file) as stored:
            columns = {name: stored[name] for name in stored.files}
        name = data.draw(st.sampled_from(sorted(columns)))
        n = len(index)
        odd = data.draw(st.sampled_from([
            np.zeros(0), np.array("x"), np.array(3), np.full(n, -1), np.full(n, 2**40), np.ones(n),
            np.full(n, 9, np.int32), np.array("[" * 5000), np.array('{"classes": ["a"]}'),
            np.array('{"classes": [], "faults": [[1, 2]], "hidden": []}'), np.zeros(9, np.uint8),
        ]))  # fmt: skip
        file.write_bytes(archive(**{**columns, name: odd}))
        for content in (file.read_bytes(), data.draw(damaged(archive(**columns)))):
            file.write_bytes(content)
            again = scan(tars, progress=False)
            assert len(again) == n
            assert all(read_file(again.place(i)) for i in range(n))


@pytest.mark.slow
@fuzzed
@given(
    content=damaged(b'path,label,split\na.jpg,cat,train\n"b ""c"".jpg",dog,val\n\n/d.jpg,1,val\n')
)
def test_a_list(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    for root in (path, path / "val"):
        reads(lambda root=root: scan(root, use_cache=False))  # type: ignore[misc]


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_a_cached_part(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as home:
        cached, arrays = Store(Path(home)).cache(model="m"), {"x": np.arange(9.0)}
        cached("part", {}, lambda: arrays)
        (file,) = Path(home, "cache").iterdir()
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        assert np.array_equal(cached("part", {}, lambda: arrays)["x"], arrays["x"])


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_a_block_of_an_ffcv_dataset(data: st.DataObject) -> None:
    content = archive(rows=np.arange(3), text=np.frombuffer(b"{}", np.uint8))
    content += np.array(len(content), "<u8").tobytes() + b"fastsc-index-01\n"
    content = data.draw(damaged(content))

    def block() -> None:
        try:
            _read_block(io.BytesIO(content), len(content))
        except ValueError as error:  # `open_beton` names the file
            raise UserError(str(error)) from None

    reads(block)


@pytest.fixture(scope="module")
def beton(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ffcv")
    out = tmp_path_factory.mktemp("fuzzed") / "betons"
    words = ["beton", "--data", str(image_folder), "--out", str(out), "--val", "none"]
    assert prepare.main([*words, "--resolution", "64", "--jpeg-share", "0.5"]) == 0
    return out / "train.beton"


ODD_NUMBERS = st.sampled_from([0, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_the_tables_of_an_ffcv_dataset(data: st.DataObject, beton: Path, tmp_path: Path) -> None:
    """Its header, its fields, its metadata and the table of its places."""
    from ffcv.types import FieldDescType, HeaderType

    path, content = tmp_path / "train.beton", beton.read_bytes()
    size = len(content)
    header = np.frombuffer(content, HeaderType, 1)[0]
    fields = HeaderType.itemsize + 2 * FieldDescType.itemsize
    first, last = data.draw(st.sampled_from([
        (0, HeaderType.itemsize), (HeaderType.itemsize, fields), (fields, fields + 32 * 20),
        (int(header["alloc_table_ptr"]), size),
    ]))  # fmt: skip
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(first, last - 1))
        number = data.draw(ODD_NUMBERS).to_bytes(8, "little")
        change = data.draw(st.sampled_from([number, number[:4], number[:1], b"\xff", b"\x80"]))
        changed[at : at + len(change)] = change[: size - at]

    def opened() -> None:
        index = open_beton(path)
        assert isinstance(index, BetonIndex)
        samples = index.samples
        assert ((samples.offsets >= 0) & (samples.offsets + samples.n_bytes <= size)).all()

    path.write_bytes(changed)
    reads(opened)
