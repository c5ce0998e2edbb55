"""How far the pipelines' clean pixels are apart: `python -m bench.agreement [--data DIR]`.

Every pipeline has the same crop, flip and factors for a dataset index; decoders and resizes round
and filter in their own ways. Each row compares the clean views of one epoch of 224 pixels with
those of `cpu` that decodes every pixel, image by image, in levels of 255: median and quartiles,
over the images, of an image's mean and of its largest absolute difference. DIR is as for
bench.loaders; `cpu-scaled` is of a few of its photographs, enlarged to 4000 × 3000.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bench.common import Row, Skipped, add_arguments, parse, report, summarize
from bench.sources import add_data_argument, enlarged, mistakes, source_folder
from fastsc.pipelines import Index, Pipeline, UserError, build, open_beton, scan
from fastsc.pipelines.decode import DECODERS, pick

SIZE = 224
UNIT = "levels"
BATCH = 32

OTHER_DECODERS = [name for name in DECODERS if name != "nvimgcodec"]  # of `cpu`
# Row -> why it is what it is.
REASONS = {
    "memory": "the same decoder and resize",
    "cpu-scaled": "crops of twice the output and more, decoded at a half, a quarter or an eighth",
    **{f"cpu-{name}": "libjpeg-turbo too, of the whole image" for name in OTHER_DECODERS},
    "dali": "its antialiased bilinear filter rounds otherwise, from the right where it mirrors",
    "ffcv-raw": "OpenCV's INTER_AREA in place of antialiased bilinear",
    "ffcv-jpeg": "and another JPEG, 400 px, quality 90, decoded with the fast transform",
}


def loader_of(
    pipeline: str, index: Index, decoder: str | None = None, *, exact: bool = True
) -> Pipeline:
    """A training loader of clean views that are pixels on [0, 1]."""
    loader: Any = build(
        pipeline,
        index,
        batch_size=BATCH,
        resolution=SIZE,
        paired=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        on_bad_image="skip",
        exact_decode=exact,
    )
    if decoder is not None:
        loader.decoder, loader._decode_region = pick(decoder)
    made: Pipeline = loader
    return made


def differences(a: Pipeline, b: Pipeline) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and largest absolute difference of each image of an epoch: (n,) levels of 255."""
    means, most = list[float](), list[float]()
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.index, other.index), "the order is every pipeline's"
        gap = 255 * (one.clean - other.clean).abs()
        means += gap.mean((1, 2, 3)).tolist()
        most += gap.amax((1, 2, 3)).tolist()
    return np.array(means), np.array(most)


def candidates(index: Index, large: Index, folder: Path) -> dict[str, Callable[[], Pipeline]]:
    """Row -> what makes its loader, of the index or of that of large photographs."""

    def ffcv(name: str, **stored: Any) -> Pipeline:
        from fastsc.pipelines.beton_writer import BetonOptions, write_beton

        path = folder / f"{name}.beton"
        write_beton(index, path, BetonOptions(**stored), on_bad_image="skip")
        return loader_of("ffcv", open_beton(path))

    made: dict[str, Callable[[], Pipeline]] = {
        "memory": lambda: loader_of("memory", index),
        "cpu-scaled": lambda: loader_of("cpu", large, exact=False),
        "dali": lambda: loader_of("dali", index),
        "ffcv-raw": lambda: ffcv("raw", resolution=None, jpeg_share=0.0),
        "ffcv-jpeg": lambda: ffcv("jpeg", resolution=400, quality=90),
    }
    for name in OTHER_DECODERS:
        made[f"cpu-{name}"] = lambda name=name: loader_of("cpu", index, name)  # type: ignore[misc]
    return made


def compare(index: Index, folder: Path) -> list[Row]:
    """Two rows a candidate, `agreement/NAME/mean` and `agreement/NAME/max`."""
    rows = list[Row]()
    large = scan(enlarged(index, folder / "large", BATCH), progress=False, use_cache=False)
    for name, make in candidates(index, large, folder).items():
        try:
            other = make()
        except (ImportError, UserError) as error:
            rows.append(Skipped(f"agreement/{name}", str(error)))
            continue
        reference = loader_of("cpu", other.index if name == "cpu-scaled" else index)
        mean, most = differences(reference, other)
        rows.append(summarize(f"agreement/{name}/mean", mean.tolist(), UNIT))
        rows.append(summarize(f"agreement/{name}/max", most.tolist(), UNIT))
        reference.close()
        other.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__)
    add_arguments(parser)
    add_data_argument(parser)
    options = parse(parser, arguments)
    folders = tempfile.TemporaryDirectory(prefix="fastsc-bench-")
    with mistakes(parser), folders as temporary:
        source = source_folder(options.data, Path(temporary))
        index = scan(source, progress=False, use_cache=False)
        rows = compare(index, Path(temporary))
        extra = {"decoder": pick()[0], "files": len(index), "reasons": REASONS}
        title = f"clean pixels beside cpu's ({pick()[0]}) · {SIZE} px, levels of 255"
        report(rows, title, options, extra=extra)
    for name, reason in REASONS.items():
        Console().print(f"{name}: {reason}", highlight=False)


if __name__ == "__main__":
    main()
