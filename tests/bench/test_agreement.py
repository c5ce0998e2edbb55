"""How far the pipelines' pixels may be apart, on photographs; crops and factors not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.agreement import REASONS, UNIT, compare, loader_of
from bench.common import Result
from fastsc.datasets.photographs import write_photographs
from fastsc.pipelines import Index, build, scan
from tests.pipelines.conftest import BACKENDS, needs_dali, needs_ffcv, opened

pytestmark = pytest.mark.heavy

# Mean of an image's mean difference, and of its largest, in levels of 255. Measured: 0.16 and 2 for
# DALI, 1.3 and 32 for FFCV's area filter, 2.0 and 35 with its second JPEG. A crop that is off by a
# pixel costs 3 to 10 in the mean, a missing flip 40.
# A JPEG that is scaled as it is decoded: 0.6 and 9 at 4000 × 3000.
BOUNDS = {"cpu-scaled": (1.5, 25), "dali": (0.3, 8), "ffcv-raw": (2, 60), "ffcv-jpeg": (3, 60)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Eight of each class."""
    root = write_photographs(tmp_path_factory.mktemp("photographs") / "p") / "train"
    for path in root.glob("*/*.jpg"):
        if int(path.stem) >= 8:
            path.unlink()
    return scan(root)


@pytest.mark.slow  # pixels of every pipeline are in tests/pipelines/test_pixels.py
@needs_dali
@needs_ffcv
def test_clean_pixels_agree_within_their_bounds(
    photographs: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.sources.LARGE", (1200, 900))
    rows = compare(photographs, tmp_path)
    by_name = {row.name: row for row in rows if isinstance(row, Result)}
    assert by_name.keys() == {f"agreement/{n}/{what}" for n in REASONS for what in ("mean", "max")}
    for name in REASONS:
        mean, most = (by_name[f"agreement/{name}/{what}"] for what in ("mean", "max"))
        assert mean.unit == most.unit == UNIT
        bound = BOUNDS.get(name, (0, 0))  # the others are the same decoder's and resize's
        assert (mean.q3 <= bound[0], most.q3 <= bound[1]) == (True, True), (mean, most)
        assert (mean.median > 0) == (name in BOUNDS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crops_flips_and_factors_are_the_same(
    backend: str, image_folder: Path, tmp_path: Path
) -> None:
    index = scan(image_folder / "train")
    reference = build("cpu", index, batch_size=8, resolution=32, seed=3)
    data = opened(backend, image_folder / "train", tmp_path)
    other = build(backend, data, batch_size=8, resolution=32, seed=3)
    for epoch in range(3):
        one, two = reference.plan(epoch), other.plan(epoch)
        for table in ("boxes", "flips", "factors", "order"):
            assert np.array_equal(getattr(one, table), getattr(two, table)), table


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_come_from_where_the_plan_says(backend: str, tmp_path: Path) -> None:
    """Every pixel of these images says where it is; the edges of the crop are read off them."""
    (tmp_path / "train" / "ramp").mkdir(parents=True)
    sizes = [(240, 200), (200, 240), (256, 256), (130, 250)]  # height, width
    for i, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / "ramp" / f"{i}.png")
    index = opened(backend, tmp_path / "train", jpeg_share=0.0, resolution=None)
    loader = build(
        backend, index, batch_size=4, resolution=64, mean=(0, 0, 0), std=(1, 1, 1), paired=False
    )
    for epoch in range(8):
        loader.set_epoch(epoch)
        plan = loader.plan()
        (batch,) = loader
        for i, image in zip(batch.index.tolist(), (255 * batch.clean).numpy(), strict=True):
            top, left, height, width = plan.boxes[i].tolist()
            rows, columns = image[0].mean(axis=1), image[1].mean(axis=0)
            if plan.flips[i]:
                columns = columns[::-1]
            # Away from the edges, where filters differ, the ramp is straight: its line, followed
            # to the edges of the first and last pixel, ends at the crop's.
            for line, start, length in ((rows, top, height), (columns, left, width)):
                middle = np.arange(8, 56)
                slope, intercept = np.polyfit(middle, line[8:56], 1)
                first, last = intercept - slope / 2 + 0.5, intercept + slope * 63.5 + 0.5
                assert abs(first - start) < 1
                assert abs(last - (start + length)) < 1
    loader.close()


def test_a_loader_agrees_with_itself_and_not_with_another_seed(photographs: Index) -> None:
    from bench.agreement import differences

    mean, most = differences(loader_of("cpu", photographs), loader_of("cpu", photographs))
    assert not mean.any()
    assert not most.any()
    other = loader_of("cpu", photographs)
    other.plan = lambda: build(  # type: ignore[method-assign]
        "cpu", photographs, batch_size=32, resolution=224, flip=False
    ).plan()
    mean, _ = differences(loader_of("cpu", photographs), other)
    flips = loader_of("cpu", photographs).plan().flips
    assert (mean > 10).mean() == pytest.approx(flips.mean(), abs=0.15)
