"""The graph of the `dali` pipeline: encoded bytes, boxes and flips in, resized images out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.keyed import PAD
from fastsc.pipelines.plan import Plan, Settings

PREFETCH = 2  # iterations that DALI works ahead


@dataclass(frozen=True)
class Sample:
    """One slot: the file that fills it and why others did not. index -1: left out."""

    index: int
    encoded: NDArray[np.uint8]
    bad: tuple[BadImage, ...]


def make_graph(
    settings: Settings,
    device: torch.device,
    source: Callable[[], Any],
    batch_size: int,
    *,
    whole: bool,
) -> Any:
    """The DALI pipeline: what `inputs` returns -> (N, R, R, 3) uint8.

    Args:
        settings: Size, crop and interpolation of the images.
        device: Where it decodes and resizes.
        source: Asked for a batch of inputs at a time.
        batch_size: Images of such a batch at most.
        whole: Decode all of an image and cut the region out of it, which gives the same pixels, in
            place of decoding the region alone.
    """
    from nvidia.dali import fn, pipeline_def, types

    s, on_gpu = settings, device.type == "cuda"
    shifted, reflect = s.train and s.crop in ("pad", "reflect"), s.crop == "reflect"
    cubic = s.interpolation == "bicubic"

    @pipeline_def(
        batch_size=batch_size,
        # On a CPU an operator ends with its last image: one thread more fills the others' wait.
        num_threads=s.n_workers + (not on_gpu),
        device_id=device.index if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
    )
    def decode() -> Any:
        encoded, anchor, shape, roi_start, roi_end, *shift = fn.external_source(
            source=source,
            num_outputs=6 if shifted else 5,
            dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT]
            + [types.INT32] * shifted,
            ndim=1,
            no_copy=True,  # Run keeps the bytes until DALI has given the batch back
        )
        decoding = {
            "device": "mixed" if on_gpu else "cpu",
            "output_type": types.RGB,
            "adjust_orientation": False,
            # Of a GPU: chroma as the CPU's decoders interpolate it, and how much goes to nvJPEG's
            # hardware.
            "jpeg_fancy_upsampling": True,
            "hw_decoder_load": s.decode_hardware,
        }
        if whole:
            images = fn.decoders.image(encoded, **decoding)
            # Not by the resize's own region, which reads up to 4 pixels past it.
            images = fn.slice(images, start=anchor, shape=shape, axis_names="HW")
        else:
            images = fn.decoders.image_slice(encoded, anchor, shape, axis_names="HW", **decoding)
        images = fn.resize(
            images,
            size=[s.resolution, s.resolution],
            antialias=True,
            interp_type=types.INTERP_CUBIC if cubic else types.INTERP_LINEAR,
            # The whole region, from right to left where it is mirrored: a flip that costs
            # nothing, where fn.flip would be another pass.
            roi_start=roi_start,
            roi_end=roi_end,
        )
        if shifted:
            images = fn.slice(
                _reflected(fn, images) if reflect else images,
                start=shift[0] + PAD if reflect else shift[0],
                shape=[s.resolution, s.resolution],
                axis_names="HW",
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        return images

    return decode()


def _reflected(fn: Any, images: Any) -> Any:
    """With PAD further pixels on every side, the image mirrored at its outermost ones."""
    above, below = images[1 : PAD + 1], images[-PAD - 1 : -1]
    images = fn.cat(fn.flip(above, vertical=1, horizontal=0), images,
                    fn.flip(below, vertical=1, horizontal=0), axis=0)  # fmt: skip
    left, right = images[:, 1 : PAD + 1], images[:, -PAD - 1 : -1]
    return fn.cat(fn.flip(left), images, fn.flip(right), axis=1)


def inputs(plan: Plan, samples: list[Sample]) -> tuple[Any, ...]:
    """What the graph's source returns for these samples."""
    index = [sample.index for sample in samples]
    boxes = plan.boxes[index]
    flips = plan.flips[index]
    end = boxes[:, 2:].astype(np.float32)  # the region's height and width
    start = np.zeros_like(end)
    start[flips, 1], end[flips, 1] = end[flips, 1], 0
    columns = [boxes[:, :2], boxes[:, 2:], start, end]
    if plan.shifts is not None:
        # A mirrored image is shifted the other way.
        columns.append(plan.shifts[index] * np.where(flips[:, None], (1, -1), 1).astype(np.int32))
    encoded = [sample.encoded for sample in samples]
    return (encoded, *(np.ascontiguousarray(column) for column in columns))
