"""The graph of the `dali` pipeline: that of a GPU, as far as a CPU can tell, and its life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastsc.pipelines import Pipeline, build
from fastsc.pipelines.dali_graph import Sample, inputs, make_graph
from fastsc.pipelines.handover import SideStream
from fastsc.pipelines.plan import Plan, Settings
from tests.pipelines.conftest import encoded, needs_dali, with_holes
from tests.pipelines.test_contract import all_equal

pytestmark = needs_dali
CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"batch_size": 5, "resolution": 32, "workers": 2, "timeout": 30}


@pytest.fixture
def loader(image_folder: Path) -> Iterator[Any]:
    loader = build("dali", image_folder / "train", **OPTIONS)
    yield loader
    loader.close()


def colorful(kind: str, **options: Any) -> bytes:
    """150x110 pixels, whose hue changes from each to the next: chroma has no smooth place."""
    pixels = np.random.default_rng(0).integers(0, 256, (110, 150, 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


FILES = {
    "png": colorful("PNG"),
    "4:4:4": colorful("JPEG", quality=95, subsampling=0),
    "4:2:2": colorful("JPEG", quality=95, subsampling=1),
    "4:2:0": colorful("JPEG", quality=95, subsampling=2),
    "progressive": colorful("JPEG", quality=95, progressive=True),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("options", [{}, {"crop": "pad", "interpolation": "bicubic"}])
def test_a_region_is_decoded_as_it_is_cut_out_of_the_whole(
    kind: str, options: dict[str, Any]
) -> None:
    """To the last bit, its edges too, where chroma is interpolated from beyond the region."""
    n, size = 40, 96
    rng = np.random.default_rng(1)
    start = rng.integers(0, (70, 100), (n, 2))
    box = np.concatenate([start, rng.integers(9, (40, 50), (n, 2))], 1).astype(np.int32)
    rows = np.arange(n)
    plan = Plan(
        seed=0,
        epoch=0,
        usable=rows,
        order=rows,
        boxes=box,
        shifts=rng.integers(-4, 5, (n, 2), np.int32) if "crop" in options else None,
        flips=rng.random(n) < 0.5,
        factors=np.ones((n, 4), np.float32),
        uniforms=np.empty((n, 0), np.float32),
    )
    samples = [Sample(i, np.frombuffer(FILES[kind], np.uint8), ()) for i in range(n)]
    settings = Settings(batch_size=n, resolution=size, workers=1, **options)
    images = []
    for whole in (False, True):
        graph = make_graph(settings, CPU, lambda: inputs(plan, samples), n, whole=whole)
        images.append(graph.run()[0].as_array().copy())
    assert images[0].std() > 30
    assert np.array_equal(*images)


def test_a_mirrored_image_is_shifted_the_other_way_and_no_image_further() -> None:
    rows = np.arange(2)
    plan = Plan(
        seed=0,
        epoch=0,
        usable=rows,
        order=rows,
        boxes=np.array([[1, 2, 30, 40]] * 2, np.int32),
        shifts=np.array([[-4, 3]] * 2, np.int32),
        flips=np.array([False, True]),
        factors=np.ones((2, 4), np.float32),
        uniforms=np.zeros((2, 0), np.float32),
    )
    samples = [Sample(i, np.zeros(1, np.uint8), ()) for i in rows]
    *_, start, end, shifts = inputs(plan, samples)
    assert shifts.tolist() == [[-4, 3], [-4, -3]]
    assert start.tolist() == [[0, 0], [0, 40]]
    assert end.tolist() == [[30, 40], [30, 0]]


def test_whole_images_through_the_pipeline(loader: Any, image_folder: Path) -> None:
    other: Any = build("dali", image_folder / "train", **OPTIONS)
    other._whole = True
    assert all_equal(list(loader), list(other))
    other.close()


def test_a_file_that_breaks_outside_of_the_region_breaks_a_whole_decode(folder: Path) -> None:
    index = with_holes("dali", folder / "train", "apple/zz.png")
    loader: Any = build("dali", index, **OPTIONS | {"batch_size": 33}, on_bad_image="skip")
    loader._whole = True
    hole = index.paths.index("apple/zz.png")
    plan = loader.plan()
    plan.boxes[hole] = 0, 0, 1, 1
    with open(index.path(hole), "rb") as file:
        sample = Sample(hole, np.frombuffer(file.read(), np.uint8), ())
    assert not loader._region_decodes(plan, sample)
    assert hole not in {int(i) for batch in loader for i in batch.index}
    loader.close()


def test_the_graph_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole images by mixed decoders that interpolate chroma; serialized, for lack of a device."""
    from nvidia.dali import fn

    made: dict[str, dict[str, Any]] = {}

    def recorded(where: Any, name: str) -> None:
        make = getattr(where, name)

        def call(*args: Any, **options: Any) -> Any:
            node = make(*args, **options)
            made[name] = options | {"on": node.device}
            return node

        monkeypatch.setattr(where, name, call)

    recorded(fn.decoders, "image")
    recorded(fn.decoders, "image_slice")
    recorded(fn, "slice")
    recorded(fn, "resize")
    settings = Settings(batch_size=5, resolution=32, decode_hardware=0.25)
    # A device without a number: DALI then takes mixed operators without asking for a GPU.
    graph = make_graph(settings, torch.device("cuda"), lambda: None, 5, whole=True)
    assert made.keys() == {"image", "slice", "resize"}
    assert made["image"]["device"] == "mixed"
    assert made["image"]["jpeg_fancy_upsampling"] is True
    assert made["image"]["hw_decoder_load"] == 0.25
    assert {made[name]["on"] for name in made} == {"gpu"}
    assert b"decoders__Image" in graph.serialize()


# ---- one graph for all epochs --------------------------------------------------------------------


def counted(loader: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of the graphs that a loader makes from here on."""
    make, made = loader.graph, list[int]()

    def graph(source: Any, batch_size: int) -> Any:
        made.append(batch_size)
        return make(source, batch_size)

    monkeypatch.setattr(loader, "graph", graph)
    return made


def first(loader: Pipeline, n: int) -> list[Any]:
    """So many batches, and no question for another: as the training loop takes them."""
    batches = iter(loader)
    taken = [next(batches) for _ in range(n)]
    batches.close()  # type: ignore[attr-defined]
    return taken


def test_a_graph_lives_over_epochs(
    loader: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = counted(loader, monkeypatch)
    epochs = [first(loader, len(loader))]
    loader.set_epoch(1)
    epochs.append(list(loader))
    assert loader.batch_at(0, 3) is not None
    assert len(list(loader.decoded(np.arange(7)))) == 2
    assert len(made) == 1
    for number, seen in enumerate(epochs):
        fresh = build("dali", image_folder / "train", **OPTIONS)
        fresh.set_epoch(number)
        assert all_equal(seen, list(fresh))
        fresh.close()
    assert loader._pool.in_use == len(epochs[0]) + len(epochs[1]), "the graph holds no file"
    loader.set_resolution(48)
    list(loader)
    assert len(made) == 2


def test_a_graph_that_was_left_or_failed_is_not_used_again(
    loader: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, straight = counted(loader, monkeypatch), list(loader)
    first(loader, 2)
    assert len(made) == 1
    assert all_equal(list(loader), straight)
    assert len(made) == 2

    index = with_holes("dali", folder / "train", "apple/zz.png")
    holey: Any = build("dali", index, **OPTIONS | {"batch_size": 33}, on_bad_image="skip")
    made = counted(holey, monkeypatch)
    (batch,) = holey
    assert len([size for size in made if size > 1]) == 2  # those of one image look for the file
    assert torch.equal(next(iter(holey)).clean, batch.clean)
    assert len([size for size in made if size > 1]) == 2
    holey.close()


def test_an_epoch_beside_another(loader: Any) -> None:
    straight = list(loader)
    batches, others = iter(loader), iter(loader)
    pairs = list(zip(batches, others, strict=True))
    assert all_equal([a for a, _ in pairs], straight)
    assert all_equal([b for _, b in pairs], straight)


def test_as_many_threads_read_as_decode(image_folder: Path) -> None:
    for workers, readers in ((1, 4), (16, 16)):
        loader: Any = build("dali", image_folder / "train", **OPTIONS | {"workers": workers})
        assert loader._readers._n_threads == readers
        loader.close()


# ---- on the way to a GPU -------------------------------------------------------------------------


class Held(SideStream):
    """A stream of a CPU that notes what is held."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.held: list[int] = []

    def hold(self, *tensors: torch.Tensor) -> None:
        self.held += [tensor.data_ptr() for tensor in tensors]


def test_decoded_images_are_held_when_their_turn_is_over(loader: Any) -> None:
    loader._side = side = Held()
    turns = loader.decoded(np.arange(12))
    seen = list[int]()
    for _ in range(2):
        seen.append(next(turns).images.data_ptr())
        assert side.held == seen[:-1]
    turns.close()  # in the midst of the second
    assert side.held == seen


def test_what_the_cpu_decodes_for_a_gpu_lies_in_the_pool(loader: Any) -> None:
    """Which is pinned there: DALI's own memory is not, and could not be copied meanwhile."""
    straight = [batch.images.clone() for batch in loader._decode(loader.plan(), [np.arange(5)])]
    loader.device = torch.device("cuda", 0)
    before = loader._pool.in_use
    (batch,) = loader._decode(loader.plan(), [np.arange(5)])
    assert torch.equal(batch.images, straight[0])
    assert loader._pool.in_use == before + 1
    assert any(buffer.ctypes.data == batch.images.data_ptr() for buffer in loader._pool._buffers)
    loader.device = CPU
