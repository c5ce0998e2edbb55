"""Whatever is in a file that fastsc reads: it is read, or a UserError of one line says why not.

Every format from a whole file of it, changed: values of other types and sizes, keys left out, bytes
flipped, cut and put in.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastsc import prepare, train
from fastsc.config.recipes import load_recipe
from fastsc.errors import UserError
from fastsc.evaluation.models.labels import _read_map
from fastsc.evaluation.models.sources import load_source
from fastsc.evaluation.results.store import Store
from fastsc.models.build import build_net
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, BetonIndex, cache, open_beton, scan
from fastsc.pipelines.beton import _read_block
from fastsc.pipelines.files import read_file
from fastsc.replaying.history import History
from fastsc.replaying.rebuild import ReplayOptions, rebuild
from fastsc.reproduction.records import read_record
from fastsc.reproduction.study import load_study
from fastsc.run.log import read_log
from tests.pipelines.conftest import packed

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests" / "old"
ODD = st.sampled_from([
    None, True, "", "x", "NaN", -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 0.5, [], {},
    [[]], [None], ["a"], {"a": 1}, {"": {}}, "9" * 5000, "\ud800", "../../x", float("nan"),
    float("inf"), [1] * 50, "x" * 3000,
])  # fmt: skip
fuzzed = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(*at, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += places(value[key], (*at, key))
    return found


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its values replaced or left out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(value)):
            break
        *outer, key = draw(st.sampled_from(known))
        parent = value
        for step in outer:
            parent = parent[step]
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(ODD))  # it may be changed in its turn
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        elif kind == "insert":
            odd = (b"[" * 300, b"9" * 5000, b"\xff", b"\0", b"&a *a", b"{", b'"', b"\n- ")
            data[at:at] = draw(st.sampled_from(odd))
        else:
            del data[at:]
    return bytes(data)


def reads(read: Callable[[], object]) -> None:
    """Reads, or says in one line why not."""
    said = ""
    with suppress(UserError):
        try:
            read()
        except UserError as error:
            said = str(error)
            raise
    assert len(said) < 5000
    assert "\n" not in said


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


RECIPE = yaml.safe_load((OLD / "run" / "config.yaml").read_text())
STUDY = yaml.safe_load((OLD / "study.yaml").read_text())
RECORD = json.loads((OLD / "records" / "both-0.json").read_text())
EVENTS = [json.loads(line) for line in (OLD / "run" / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def tars(image_folder: Path, tmp_path: Path) -> Path:
    """Two tars, one of them cut."""
    folder = packed(image_folder, tmp_path / "tars", 100_000) / "train"
    first = folder / "00000.tar"
    first.write_bytes(first.read_bytes()[:-700])
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(RECIPE).map(text_of), damaged(yaml.safe_dump(RECIPE).encode())))
def test_a_recipe(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    reads(lambda: load_recipe(str(tmp_path / "x.yaml")))


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(STUDY).map(text_of), damaged(yaml.safe_dump(STUDY).encode())))
def test_a_study(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    reads(lambda: load_study(str(tmp_path / "x.yaml")))


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(RECORD).map(text_of), damaged(text_of(RECORD))))
def test_a_record(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reads(lambda: read_record(path))


@pytest.mark.slow
@fuzzed
@given(events=changed(EVENTS), step=st.sampled_from([None, 1, 9, 16]))
def test_a_log(events: list[Any], step: int | None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(OLD / "run", run)
    (run / "log.jsonl").write_bytes(b"\n".join(map(text_of, events)) + b"\n")

    def replayed() -> None:
        history = History.read(run)
        record = history.at(step)
        history.config(record)
        history.broken(record)

    reads(replayed)


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps whose images are there."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = "cifar100 --model fastsc:resnet8w1 --resolution 16 --batch-size 8 --max-steps 2"
    words += f" --pipeline cpu --workers 1 --device cpu --log-every 1 --out {out}"
    assert train.main([*words.split(), "--data", str(image_folder)]) == 0
    return out


@pytest.mark.slow
@settings(fuzzed, max_examples=200)
@given(data=st.data(), rank=st.sampled_from([None, None, 0, 1, -1]))
def test_a_replayed_step(data: st.DataObject, rank: int | None, trained: Path) -> None:
    log, events = trained / "log.jsonl", read_log(trained / "log.jsonl")
    with tempfile.TemporaryDirectory() as home:
        run = Path(home)
        shutil.copy(trained / "config.yaml", run)
        events = data.draw(changed([events[0], *events[1:][-4:]]))
        (run / log.name).write_bytes(b"\n".join(map(text_of, events)) + b"\n")

        def replayed() -> None:
            history = History.read(run)
            rebuild(history, history.at(2), ReplayOptions(rank, None, None, "cpu"))

        reads(replayed)


@pytest.mark.slow
@fuzzed
@given(content=damaged((OLD / "run" / "log.jsonl").read_bytes()))
def test_a_damaged_log(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reads(lambda: read_log(path))


METADATA = {
    "architecture": "fastsc:resnet8w1", "classes": ["a", "b"], "resolution": 16,
    "stem": "imagenet", "val_crop": 0.875, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
    "blurpool": False, "step": 3,
}  # fmt: skip


@pytest.mark.slow
@fuzzed
@given(metadata=changed(METADATA), data=st.data())
def test_a_weights_file(metadata: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = build_net("fastsc:resnet8w1", 2, "imagenet", 16).state_dict()
    save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    reads(lambda: load_source(str(path)))


class _AnyName:
    class model:  # noqa: N801
        n_classes, classes = 3, ("a", "b", "c")

    def find(self, name: str) -> int:
        return -1

    def near(self, name: str) -> str:
        return ""


@pytest.mark.slow
@fuzzed
@given(
    content=st.one_of(changed({"a": 0, "b": "1"}).map(text_of), damaged(b"a: 0\nb: 1\n")),
    name=st.sampled_from(["map.json", "map.yaml"]),
)
def test_a_class_map(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    reads(lambda: _read_map(tmp_path / name, ("a", "b"), _AnyName()))  # type: ignore[arg-type]


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
        keep, arrays = Store(Path(home)).keep(model="m"), {"x": np.arange(9.0)}
        keep("part", {}, lambda: arrays)
        (file,) = Path(home, "cache").iterdir()
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        assert np.array_equal(keep("part", {}, lambda: arrays)["x"], arrays["x"])


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
def test_the_tables_of_an_ffcv_dataset(data: st.DataObject, beton: Path) -> None:
    """Its header, its fields, its metadata and the table of its places, in place in the file."""
    from ffcv.types import FieldDescType, HeaderType

    size = beton.stat().st_size
    with open(beton, "r+b") as file:
        header = np.frombuffer(file.read(HeaderType.itemsize), HeaderType)[0]
        table = int(header["alloc_table_ptr"])
        fields = HeaderType.itemsize + 2 * FieldDescType.itemsize
        part = data.draw(st.sampled_from([
            (0, HeaderType.itemsize), (HeaderType.itemsize, fields), (fields, fields + 32 * 20),
            (table, size),
        ]))  # fmt: skip
        whole: list[tuple[int, bytes]] = []
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(part[0], part[1] - 1))
            number = data.draw(ODD_NUMBERS).to_bytes(8, "little")
            change = data.draw(st.sampled_from([number, number[:4], number[:1], b"\xff", b"\x80"]))
            file.seek(at)
            whole.append((at, file.read(min(len(change), size - at))))
            file.seek(at)
            file.write(change[: size - at])
        file.flush()

        def opened() -> None:
            index = open_beton(beton)
            assert isinstance(index, BetonIndex)
            samples = index.samples
            assert ((samples.offsets >= 0) & (samples.offsets + samples.n_bytes <= size)).all()

        try:
            reads(opened)
        finally:
            for at, content in reversed(whole):
                file.seek(at)
                file.write(content)
    open_beton(beton)  # it is whole again
