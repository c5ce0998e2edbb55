"""The operations of `--perturb` and their peers as cases for `bench.kernels`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from bench.common import Case
from bench.kernel_table import Cases
from fastsc.kernels.perturbations import OPERATIONS, Change, perturb_bytes

FEW = 8  # images a call of the peers
AMOUNTS = {
    "gamma": 0.5, "temperature": 50.0, "exposure": 1.0, "grayscale": 1.0, "blur": 2.0,
    "sharpness": 1.0, "noise": 10.0, "jpeg": 40.0, "posterize": 4.0,
}  # fmt: skip
RADIUS = 6  # pixels of the blur's kernel each way
Peer = Callable[[Tensor], Tensor]


def torchvision_peers() -> dict[str, Peer]:
    """Of (N, 3, H, W) uint8 tensors."""
    from torchvision.transforms import v2

    jpeg = v2.JPEG(60)
    return {
        "gamma": lambda x: tvf.adjust_gamma(x, 2**0.5),
        "grayscale": lambda x: tvf.rgb_to_grayscale(x, 3),
        "blur": lambda x: tvf.gaussian_blur(x, [2 * RADIUS + 1] * 2, [2.0, 2.0]),
        "sharpness": lambda x: tvf.adjust_sharpness(x, 2.0),
        "noise": lambda x: tvf.gaussian_noise(x, 0.0, 10 / 255),
        "jpeg": lambda x: torch.stack([jpeg(image) for image in x.cpu()]),
        "posterize": lambda x: tvf.posterize(x, 4),
    }


def kornia_peers() -> dict[str, Peer]:
    """Of (N, 3, H, W) float tensors on [0, 1]."""
    import kornia
    from kornia.augmentation import RandomPlanckianJitter

    planckian = RandomPlanckianJitter("blackbody", p=1.0)
    return {
        "gamma": lambda x: kornia.enhance.adjust_gamma(x, 2**0.5),
        "temperature": planckian,
        "grayscale": kornia.color.rgb_to_grayscale,
        "blur": lambda x: kornia.filters.gaussian_blur2d(x, 2 * RADIUS + 1, (2.0, 2.0)),
        "sharpness": lambda x: kornia.enhance.sharpness(x, 2.0),
        "noise": lambda x: (x + torch.randn_like(x) * (10 / 255)).clamp(0, 1),
        "posterize": lambda x: kornia.enhance.posterize(x, 4),
        "jpeg": lambda x: kornia.enhance.jpeg_codec_differentiable(
            x, torch.full((len(x),), 60.0, device=x.device)
        ),
    }


def add_perturbations(cases: Cases, x_u8: Tensor) -> None:
    """Every operation, ours and theirs; `x_u8` (N, S, S, 3) on the CPU."""
    x, n = x_u8.to(cases.device), len(x_u8)
    moved = 2 * x_u8[0].numel()
    peers: dict[str, dict[str, Peer]] = {"torchvision": torchvision_peers(), "kornia": {}}
    if importlib.util.find_spec("kornia"):
        peers["kornia"] = kornia_peers()
    else:
        cases.skip("perturb/kornia", "pip install kornia")
    few = min(FEW, n) if cases.device.type == "cpu" else n
    planar = x[:few].permute(0, 3, 1, 2).contiguous()
    given = {"torchvision": planar, "kornia": planar.float() / 255}
    keys = np.random.default_rng(0).random((n, 2))
    for name in OPERATIONS:
        change = [Change(name, np.full(n, AMOUNTS[name]), keys)]

        def ours(change: list[Change] = change) -> Tensor:
            return perturb_bytes(x, change)

        cases.add(Case(f"perturb/{name}/fastsc", ours, n), bytes=moved)
        for library, functions in peers.items():
            if (function := functions.get(name)) is None:
                continue

            def theirs(function: Peer = function, images: Tensor = given[library]) -> Tensor:
                return function(images)

            try:
                theirs()
            except Exception as problem:  # noqa: BLE001, a peer that does not run is a row that says so
                cases.skip(f"perturb/{name}/{library}", str(problem).strip().splitlines()[0])
            else:
                cases.add(Case(f"perturb/{name}/{library}", theirs, few), bytes=moved)
