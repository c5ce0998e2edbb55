"""JPEGs on a GPU by nvImageCodec, as DALI decodes them: `python -m bench.gpu_decoders DIR`.

region    a region of every image beside the same of the whole image, in a process of its own: on
          some GPUs version 0.9 ends by a fault there (nvImageCodec issue 55)
hardware  checksums of a batch from the JPEG engine while the GPU is idle, and while it is busy on
          the stream that the images belong to: the engine may not wait for that (torchcodec 1634)

Exit status 1 where a row is not as it must be, 0 where nvImageCodec is not installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import describe
from fastsc.cli.packages import installed

ROOT = Path(__file__).parent.parent
LIMIT_S = 15.0  # of one row
IMAGES = 64
# A region ends where the chroma's upsampling would look further: so many pixels from its edges
# on its values are the whole image's.
EDGE = 8
ROUNDS = 10


def region(files: list[Path], device: str) -> dict[str, Any]:
    """The largest difference inside of the regions, and at their edges; in levels."""
    from nvidia import nvimgcodec

    decoder = _decoder(device, hardware=False)
    inside = edges = 0
    for file in files:
        stream = nvimgcodec.CodeStream(file.read_bytes())
        top, left = stream.height // 4, stream.width // 4
        bottom, right = 3 * stream.height // 4, 3 * stream.width // 4
        part = stream.get_sub_code_stream(region=nvimgcodec.Region(top, left, bottom, right))
        whole, cut = (np.asarray(decoder.decode(s).cpu()).astype(int) for s in (stream, part))
        apart = np.abs(whole[top:bottom, left:right] - cut)
        inside = max(inside, int(apart[EDGE:-EDGE, EDGE:-EDGE].max()))
        edges = max(edges, int(apart.max()))
    return {"met": inside == 0, "inside": inside, "edges": edges}


def hardware(files: list[Path], device: str) -> dict[str, Any]:
    """Rounds in which a busy GPU gave other images than an idle one."""
    from nvidia import nvimgcodec

    decoder = _decoder(device, hardware=True)
    streams = [nvimgcodec.CodeStream(file.read_bytes()) for file in files]
    on_gpu = device != "cpu"
    stream = torch.cuda.current_stream().cuda_stream if on_gpu else 0

    def checksums() -> list[int]:
        images = decoder.decode(streams, cuda_stream=stream)
        return [int(np.asarray(image.cpu()).astype(np.int64).sum()) for image in images]

    idle, wrong = checksums(), 0
    a = torch.randn(4096 if on_gpu else 64, 4096 if on_gpu else 64, device=device)
    for _ in range(ROUNDS):
        for _ in range(50):
            a = (a @ a).clamp(-1, 1)
        wrong += checksums() != idle
    return {"met": wrong == 0, "rounds": ROUNDS, "wrong": wrong}


def _decoder(device: str, *, hardware: bool) -> Any:
    from nvidia import nvimgcodec

    if device == "cpu":
        backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
        return nvimgcodec.Decoder(nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
    kinds = [nvimgcodec.HW_GPU_ONLY] if hardware else []
    kinds += [nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU]
    return nvimgcodec.Decoder(0, backends=[nvimgcodec.Backend(kind) for kind in kinds])


ROWS = {"region": region, "hardware": hardware}


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, whatever becomes of the process."""
    command = [sys.executable, "-m", "bench.gpu_decoders", str(options.folder), "--row", name]
    command += ["--device", options.device]
    limit = LIMIT_S * (8 if options.device == "cpu" else 1)  # it shows that the lines run
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "met": False, "said": f"not done after {limit:g} s"}
    last = ([*done.stdout.splitlines(), *done.stderr.splitlines()] or [""])[-1]
    if done.returncode:  # by a signal below zero
        return {"name": name, "met": False, "said": f"status {done.returncode}: {last}"}
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_decoders", description=__doc__)
    parser.add_argument("folder", type=Path, help="of JPEGs, at any depth")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", choices=ROWS, help="this row, in this process")
    options = parser.parse_args(arguments)
    if options.row:
        files = sorted(
            path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )[:IMAGES]
        if not files:
            parser.error(f"{options.folder}: no JPEGs in it")
        print(json.dumps(ROWS[options.row](files, options.device)))
        return 0
    rows: list[dict[str, Any]] = []
    if not installed("nvidia.nvimgcodec"):
        print("left out: nvidia-nvimgcodec is not installed; its wheel may be carried")
    for name in ROWS if installed("nvidia.nvimgcodec") else ():
        rows.append(in_a_process(name, options))
        print(json.dumps(rows[-1]), flush=True)
        if options.json is not None:
            document = {"metadata": describe(torch.device(options.device)), "results": rows}
            options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
