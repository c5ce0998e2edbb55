"""Betons: what we write, FFCV reads; what FFCV writes, we read; what is damaged is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastsc.pipelines import BetonIndex, UserError, build, open_beton, scan
from fastsc.pipelines.ffcv import FfcvPipeline, verify
from tests.pipelines.conftest import damage, encoded, needs_ffcv, opened, photograph, undecodable

pytestmark = [needs_ffcv, pytest.mark.heavy]


@pytest.fixture
def beton(folder: Path) -> BetonIndex:
    index = opened("ffcv", folder / "train", jpeg_share=0.5, resolution=120)
    assert isinstance(index, BetonIndex)
    return index


def test_index_is_the_folders(folder: Path, beton: BetonIndex) -> None:
    index = scan(folder / "train")
    assert beton.hash == index.hash  # so that a run may go on with another pipeline
    assert (beton.classes, beton.paths) == (index.classes, index.paths)
    assert (beton.heights == index.heights).all()
    assert beton.path(3) == str(folder / "train.beton" / index.paths[3])


def test_samples_are_shrunk_by_their_longer_side(beton: BetonIndex) -> None:
    heights, widths = beton.samples.heights, beton.samples.widths
    longest = np.maximum(beton.heights, beton.widths)
    assert (np.maximum(heights, widths) == np.minimum(longest, 120)).all()
    scale = np.minimum(1, 120 / longest)
    assert (np.abs(heights - beton.heights * scale) < 1).all()
    assert (np.abs(widths - beton.widths * scale) < 1).all()
    assert 5 < beton.samples.is_jpeg.sum() < 27


@pytest.mark.slow
def test_ffcvs_own_loader_reads_it(folder: Path) -> None:
    """In a process of its own, since FFCV's loader changes torch's threads."""
    program = """
import sys
import numpy as np
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.loader import Loader, OrderOption
loader = Loader(sys.argv[1], batch_size=7, num_workers=1, order=OrderOption.SEQUENTIAL,
                drop_last=False,
                pipelines={"image": [CenterCropRGBImageDecoder((32, 32), 1.0)],
                           "label": [IntDecoder()]})
images, labels = zip(*((np.array(i), np.array(l)) for i, l in loader))
np.savez(sys.argv[2], images=np.concatenate(images), labels=np.concatenate(labels)[:, 0])
"""
    beton = opened("ffcv", folder / "train", jpeg_share=0.5, resolution=None)
    file = folder / "read.npz"
    command = [sys.executable, "-c", program, str(beton.root), str(file)]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    theirs = np.load(file)
    ours = build(
        "ffcv", beton, batch_size=32, resolution=32, train=False, val_crop=1.0,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    (batch,) = ours
    ours.close()
    assert (theirs["labels"] == batch.target.numpy()).all()
    pixels = (255 * batch.clean).round().permute(0, 2, 3, 1).numpy()
    assert (pixels == theirs["images"]).all()


def test_beton_written_by_ffcv_itself(folder: Path, tmp_path: Path) -> None:
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    index, path = scan(folder / "train"), tmp_path / "theirs.beton"

    class Samples:
        def __len__(self) -> int:
            return len(index)

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            return 0.5, Image.open(index.path(i)).convert("RGB"), int(index.targets[i])

    fields = {"weight": FloatField(), "image": RGBImageField("raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Samples())
    theirs = open_beton(path)
    assert theirs.classes == ("0", "1", "2", "3")
    assert (theirs.targets == index.targets).all()
    assert (theirs.heights == index.heights).all()  # nothing was shrunk
    own = build("ffcv", opened("ffcv", folder / "train", jpeg_share=0.0, resolution=None),
                batch_size=32, resolution=48)  # fmt: skip
    loader = build("ffcv", path, batch_size=32, resolution=48)
    for one, other in zip(loader, own, strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.perturbed, other.perturbed)  # type: ignore[arg-type]
        assert torch.equal(one.index, other.index)


def test_file_is_the_same_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    from fastsc.pipelines.beton_writer import BetonOptions, write_beton

    index, options = scan(folder / "train"), BetonOptions(resolution=100, jpeg_share=0.5)
    for workers in (1, 3):
        write_beton(index, tmp_path / f"{workers}.beton", options, workers=workers)
    assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "3.beton").read_bytes()


def test_jpegs_have_the_quality_that_was_asked_for(folder: Path) -> None:
    def tables(quality: int) -> tuple[dict[int, list[int]], int]:
        index = opened("ffcv", folder / "train", jpeg_share=1.0, quality=quality)
        assert isinstance(index, BetonIndex)
        assert index.samples.is_jpeg.all()
        start, size = index.samples.offsets[0], index.samples.n_bytes[0]
        data = index.root.read_bytes()[start : start + size]
        image: Any = Image.open(io.BytesIO(data))
        return image.quantization, int(index.samples.n_bytes.sum())

    (low, small), (high, large) = tables(40), tables(95)
    reference: Any = Image.open(io.BytesIO(encoded(photograph(), quality=95)))
    assert high == reference.quantization != low
    assert small < large


def test_no_sample_crosses_a_page(beton: BetonIndex) -> None:
    from ffcv.reader import Reader

    page = int(Reader(str(beton.root)).page_size)
    samples = beton.samples
    assert (samples.offsets // page == (samples.offsets + samples.n_bytes - 1) // page).all()


def test_pages_fill_and_follow(tmp_path: Path) -> None:
    """More than one page, with samples of a third of one."""
    from fastsc.pipelines.beton_writer import BetonOptions, verify_beton, write_beton

    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (1000, 1000), (40 * i, 0, 0)).save(tmp_path / "train" / "a" / f"{i}.png")
    index = scan(tmp_path / "train")
    write_beton(index, tmp_path / "x.beton", BetonOptions(resolution=None, jpeg_share=0.0))
    verify_beton(tmp_path / "x.beton", index)
    beton = open_beton(tmp_path / "x.beton")
    assert len(set((beton.samples.offsets >> 23).tolist())) == 3
    (batch,) = build("ffcv", beton, batch_size=5, resolution=8, train=False, mean=(0,) * 3,
                     std=(1,) * 3)  # type: ignore[arg-type]  # fmt: skip
    assert (255 * batch.clean[:, 0, 4, 4]).round().tolist() == [0, 40, 80, 120, 160]


# ---- what is broken ------------------------------------------------------------------------------


def test_undecodable_images_are_left_out_and_keep_their_place(folder: Path) -> None:
    train = folder / "train"
    (train / "boat" / "00.png").write_bytes(undecodable())  # before 00.jpg's successors
    (train / "boat" / "empty.jpg").write_bytes(b"")
    beton = opened("ffcv", train)
    index = scan(train)
    assert beton.paths == index.paths
    hole, empty = (index.paths.index(f"boat/{name}") for name in ("00.png", "empty.jpg"))
    assert sorted(beton.left_out) == sorted([hole, empty])
    loader = build("ffcv", beton, batch_size=32, resolution=32, on_bad_image="skip")
    (batch,) = loader
    others = build("cpu", index.without({hole: "x"}), batch_size=32, resolution=32,
                   on_bad_image="skip")  # fmt: skip
    (other,) = others
    assert torch.equal(batch.index, other.index)  # the same order, by the same dataset indices
    assert torch.equal(batch.target, other.target)
    with pytest.raises(UserError, match=r"boat/00\.png: .*--on-bad-image skip"):
        build("ffcv", beton, batch_size=32, resolution=32)


def test_verify_finds_lost_bytes(beton: BetonIndex) -> None:
    assert verify(beton) == {}
    victim = int(np.flatnonzero(beton.samples.is_jpeg)[0])
    damage(beton, victim)
    assert list(verify(beton)) == [victim]
    assert list(verify(beton, only=np.array([victim + 1, victim + 2]))) == []


def test_cut_during_the_epoch_is_an_error_and_no_crash(beton: BetonIndex) -> None:
    loader = build("ffcv", beton, batch_size=2, resolution=32)
    batches = iter(loader)
    next(batches)
    with open(beton.root, "r+b") as file:
        file.truncate(int(beton.samples.offsets.min()) + 100)
    with pytest.raises(UserError, match=r"train\.beton/.*cut since it was opened"):
        list(batches)
    loader.close()


def test_every_cut_is_refused(beton: BetonIndex, tmp_path: Path) -> None:
    whole = beton.root.read_bytes()
    path = tmp_path / "cut.beton"
    path.write_bytes(whole)
    open_beton(path)
    for end in [0, 1, 23, 24, 500, 2500, len(whole) // 2, len(whole) - 1000, len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut\.beton: not a whole beton .*prepare beton"):
            open_beton(path)


def rewrite_size(beton: BetonIndex, row: int, field: str, value: int) -> None:
    """Writes another height or width into FFCV's metadata of a row."""
    from ffcv.reader import Reader
    from ffcv.types import HeaderType

    reader = Reader(str(beton.root))
    metadata = reader.metadata.copy()
    metadata[metadata.dtype.names[0]][field][row] = value
    with open(beton.root, "r+b") as file:
        file.seek(HeaderType.itemsize + reader.field_descriptors.nbytes)
        file.write(metadata.tobytes())


@pytest.mark.parametrize("change", [-40, -1, 1, 50, 1000])
@pytest.mark.parametrize("field", ["height", "width"])
def test_jpeg_of_another_size_than_its_table_says(
    beton: BetonIndex, field: str, change: int
) -> None:
    victim = int(np.flatnonzero(beton.samples.is_jpeg)[3])
    size = int(getattr(beton.samples, f"{field}s")[victim])
    rewrite_size(beton, victim, field, max(1, size + change))
    assert list(verify(open_beton(beton.root))) == [victim]
    loader = build("ffcv", beton.root, batch_size=32, resolution=32)
    with pytest.raises(UserError, match="truncated or corrupt"):
        list(loader)
    loader.close()


def test_raw_sample_of_another_size_is_refused(beton: BetonIndex) -> None:
    victim = int(np.flatnonzero(~beton.samples.is_jpeg)[0])
    rewrite_size(beton, victim, "height", int(beton.samples.heights[victim]) + 1)
    with pytest.raises(UserError, match="not a whole beton"):
        open_beton(beton.root)


def test_boxes_outside_of_a_sample_are_an_error_and_no_crash(beton: BetonIndex) -> None:
    loader = build("ffcv", beton, batch_size=8, resolution=32)
    assert isinstance(loader, FfcvPipeline)
    for box in ([0, 0, 10_000, 5], [0, 0, 5, 10_000], [-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 0, 5]):
        plan = loader.plan()
        plan.boxes[:] = box
        status = loader.fill(plan, np.arange(8), np.zeros((8, 32, 32, 3), np.uint8))
        assert status.all(), box
    loader.close()


@pytest.mark.parametrize("content", [b"", b"no beton\n" * 900, bytes(50_000), b"\xff" * 50_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole beton"):
        open_beton(path)


def test_flipped_bytes_are_an_error_or_harmless(beton: BetonIndex, tmp_path: Path) -> None:
    """The tables in front and behind; what is wrong in a sample shows while decoding."""
    whole = beton.root.read_bytes()
    first, rng = int(beton.samples.offsets.min()), np.random.default_rng(3)
    path = tmp_path / "x.beton"
    last = int((beton.samples.offsets + beton.samples.n_bytes).max())
    places = [*rng.integers(0, 2**12, 30), *rng.integers(last, len(whole), 30)]
    assert first > 2**12
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with suppress(UserError):
            verify(open_beton(path))


@pytest.mark.slow
def test_import_leaves_the_threads_alone(beton: BetonIndex) -> None:
    program = """
import sys, numba, torch
torch.set_num_threads(2)
before = torch.get_num_threads(), numba.get_num_threads()
from fastsc.pipelines import open_beton
open_beton(sys.argv[1])
assert "ffcv" in sys.modules
assert (torch.get_num_threads(), numba.get_num_threads()) == before
"""
    command = [sys.executable, "-c", program, str(beton.root)]
    subprocess.run(command, check=True, timeout=100)


def test_mistakes(folder: Path, beton: BetonIndex) -> None:
    with pytest.raises(UserError, match=r"nowhere\.beton: no such file; make one with python -m"):
        open_beton(folder / "nowhere.beton")
    with pytest.raises(UserError, match="a folder, not a beton"):
        build("ffcv", folder / "train", batch_size=4, resolution=32)
    with pytest.raises(UserError, match="--pipeline ffcv reads a beton"):
        build("ffcv", scan(folder / "train"), batch_size=4, resolution=32)
    with pytest.raises(UserError, match="--pipeline cpu reads an image folder"):
        build("cpu", beton, batch_size=4, resolution=32)
    with pytest.raises(UserError, match="class boat is not among the training classes"):
        open_beton(beton.root, classes=["apple", "cloud", "door"])
    again = open_beton(beton.root, classes=["ant", *beton.classes])
    assert (again.targets == beton.targets + 1).all()


# ---- crops ---------------------------------------------------------------------------------------


def test_stored_boxes_are_the_originals_to_a_pixel(beton: BetonIndex) -> None:
    loader = build("ffcv", beton, batch_size=4, resolution=32)
    assert isinstance(loader, FfcvPipeline)
    samples, shrunk = beton.samples, 0
    for number in range(40):
        boxes = loader.plan(number).boxes
        stored = loader.stored_boxes(boxes)
        for axis, original, size in (
            (0, beton.heights, samples.heights),
            (1, beton.widths, samples.widths),
        ):
            scale = size / original
            start, end = stored[:, axis], stored[:, axis] + stored[:, axis + 2]
            assert (start >= 0).all()
            assert (start < end).all()
            assert (end <= size).all()
            assert (np.abs(start - boxes[:, axis] * scale) <= 0.5 + 1e-9).all()
            wanted = (boxes[:, axis] + boxes[:, axis + 2]) * scale
            assert (np.abs(end - wanted) <= 0.5 + 1e-9).all()
            shrunk += int((size < original).sum())
    assert shrunk > 100
    loader.close()
