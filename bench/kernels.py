"""Kernels beside their peers and their limits: `python -m bench.kernels [--device cuda]`.

pair_view: one image from uint8 to a clean and a perturbed normalized view; one thread on a CPU.
front_end: one normalized image to its channels. perturb: one image from uint8 to uint8, by one of
the operations of --perturb, beside torchvision's and kornia's nearest; tests hold ours against
their oracles. ds and pool_ds: forward and backward of one batch. Each case is checked against
float64 before the clock runs, and timed over so many calls that the cases' turns take equally long.
"of copy" is a case's share of the bandwidth that torch's copy reaches here, counting only the bytes
that the case must move.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import add_arguments, parse, report, write_early
from bench.kernel_ds import FEATURES, KINDS, add_ds, add_pool_ds
from bench.kernel_front import FRONTS, add_front_ends
from bench.kernel_perturbations import add_perturbations
from bench.kernel_table import Cases, columns
from bench.kernel_views import add_pair_views, bytes_moved
from bench.sources import add_data_argument, mistakes, source_folder
from fastsc.kernels.perturbations import OPERATIONS
from fastsc.pipelines import build, scan

# On a CPU: ResNet-18's last map for 32 pairs. On a GPU: ResNet-50's for 256.
CPU_BATCH, GPU_BATCH = 32, 256
CPU_CHANNELS = 512
GROUPS = ("pair_view", "front_end", "perturb", "pool_ds", "ds")


def images(data: Path | None, size: int, n: int) -> Tensor:
    """(n, size, size, 3) uint8: crops of photographs, else noise, dark and light.

    The kernels have no branches: content changes the errors, and hardly the times.
    """
    if data is None:
        seed, shape = torch.Generator().manual_seed(0), (n, size, size, 3)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seed)
        noise[::2] //= 2
        return noise
    index = scan(source_folder(data, Path()), progress=False)
    loader = build(
        "cpu", index, batch_size=n, resolution=size, paired=False, mean=(0, 0, 0),
        std=(1, 1, 1), on_bad_image="skip",
    )  # fmt: skip
    batch = next(iter(loader))
    loader.close()
    return (255 * batch.clean).round().to(torch.uint8).permute(0, 2, 3, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    add_arguments(parser)
    add_data_argument(parser)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (default 224)")
    parser.add_argument("--batch", type=int, help="images or pairs a call (default 32, cuda 256)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="KERNEL")
    parser.add_argument("--no-inductor", action="store_true", help="nothing by torch.compile")
    options = parse(parser, arguments)
    on_gpu = options.device.type == "cuda"
    batch = options.batch if options.batch is not None else GPU_BATCH if on_gpu else CPU_BATCH
    if options.size < 1 or options.threads < 1 or batch < 2:
        parser.error("--size and --threads must be at least 1, --batch at least 2")
    torch.set_num_threads(options.threads)
    with mistakes(parser):
        x_u8 = images(options.data, options.size, batch)
    low = torch.bfloat16 if on_gpu else torch.float32
    cases = Cases(
        options.device,
        inductor=not options.no_inductor,
        write=lambda rows, details: write_early(rows, options, {"batch": batch, "cases": details}),
    )
    cases.add_copy(batch * bytes_moved(options.size, low) // 2)
    if "pair_view" in options.only:
        add_pair_views(cases, x_u8)
    if "front_end" in options.only:
        add_front_ends(cases, x_u8, low)
    if "perturb" in options.only:
        add_perturbations(cases, x_u8)
    if "pool_ds" in options.only:
        add_pool_ds(cases, batch, FEATURES if on_gpu else CPU_CHANNELS, low)
    if "ds" in options.only:
        add_ds(cases, 8 * batch if not on_gpu else batch)
    rows = cases.measure(options.rounds)
    details = columns(rows, cases.details)
    report(
        rows,
        f"kernels · {options.size}x{options.size}, batch {batch}",
        options,
        baselines={
            "pair_view": "pair_view/torchvision",
            **{f"front_end/{front}": f"front_end/{front}-reference" for front in FRONTS},
            **{f"ds/{kind}": f"ds/{kind}-reference" for kind in KINDS},
            **{f"pool_ds/{kind}": f"pool_ds/{kind}-separate" for kind in KINDS},
            **{f"perturb/{name}": f"perturb/{name}/torchvision" for name in OPERATIONS},
        },
        extra={"batch": batch, "cases": details},
        columns={
            "GB/s": {name: f"{d['gb_per_s']:.3g}" for name, d in details.items()},
            "of copy": {
                name: f"{d['share_of_copy']:.1%}"
                for name, d in details.items()
                if d["share_of_copy"] is not None
            },
            **_on_device(details),
            "error": {
                name: f"{d['error']:.2g}" for name, d in details.items() if d["error"] is not None
            },
        },
    )


def _on_device(details: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Columns that a CPU has nothing to say to."""
    seen = {name: d for name, d in details.items() if d["launches"] is not None}
    if not seen:
        return {}
    return {
        "device ms": {name: f"{d['device_ms']:.3g}" for name, d in seen.items()},
        "launches": {name: str(d["launches"]) for name, d in seen.items()},
    }


if __name__ == "__main__":
    main()
