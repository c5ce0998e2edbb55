"""Kernels beside their peers: `python -m bench.kernels [--device cuda] [--json FILE]`.

pair_view: one 224x224 image from uint8 to a clean and a perturbed normalized view, one CPU thread.
ds: forward and backward of one batch. Outputs are checked against the oracle before the clock runs.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from bench.common import Case, Row, Skipped, add_arguments, measure, parse, report
from bench.sources import add_data_argument, mistakes, source_folder
from fastsc.kernels import ds, pair_view
from fastsc.pipelines import build, scan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
BATCH = 32
FEW = 8  # images a call for the slow peers, so that a round stays short
FEATURES, CLASSES, DS_BATCH = 2048, 1000, 256

Views = Callable[[], tuple[Tensor, Tensor]]


def draw_factors(n: int, generator: torch.Generator) -> Tensor:
    """(n, 4): brightness, contrast, saturation in 1 +- s, hue in +- s."""
    strengths = torch.tensor(STRENGTHS)
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return centre + strengths * (2 * torch.rand(n, 4, generator=generator) - 1)


def torchvision_perturb(image: Tensor, factors: Sequence[float]) -> Tensor:
    """torchvision's four ops on one image (3, H, W), uint8 or float on [0, 1]."""
    brightness, contrast, saturation, hue = factors
    image = tvf.adjust_contrast(tvf.adjust_brightness(image, brightness), contrast)
    return tvf.adjust_hue(tvf.adjust_saturation(image, saturation), hue)


def torchvision_pair(images: Tensor, factors: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """What a user of transforms v2 writes: uint8 tensors, one image at a time; (N, 3, H, W) in."""
    clean: list[Tensor] = []
    perturbed: list[Tensor] = []
    for image, row in zip(images, factors, strict=True):
        for views, view in ((clean, image), (perturbed, torchvision_perturb(image, row))):
            views.append(tvf.normalize(tvf.to_dtype(view, torch.float32, scale=True), MEAN, STD))
    return torch.stack(clean), torch.stack(perturbed)


def max_error(pair: tuple[Tensor, Tensor], x_u8: Tensor, factors: Tensor) -> float:
    """Largest deviation of both views from torchvision in float32, in 1/255."""
    worst = 0.0
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    clean, perturbed = (view.cpu().float() * std + mean for view in pair)
    rows = zip(x_u8.cpu(), factors.tolist(), clean, perturbed, strict=True)
    for image, row, plain, changed in rows:
        x = image.permute(2, 0, 1).float() / 255
        for view, expected in ((plain, x), (changed, torchvision_perturb(x, row))):
            worst = max(worst, 255 * (view - expected).abs().max().item())
    return worst


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def images(data: Path | None, size: int) -> Tensor:
    """(BATCH, size, size, 3) uint8: crops of photographs, else noise, dark and light.

    The kernels have no branches: content changes the errors, and hardly the times.
    """
    if data is None:
        seed, shape = torch.Generator().manual_seed(0), (BATCH, size, size, 3)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seed)
        noise[::2] //= 2
        return noise
    index = scan(source_folder(data, Path()), progress=False)
    loader = build(
        "cpu", index, batch_size=BATCH, resolution=size, paired=False, mean=(0, 0, 0),
        std=(1, 1, 1), on_bad_image="skip",
    )  # fmt: skip
    batch = next(iter(loader))
    loader.close()
    return (255 * batch.clean).round().to(torch.uint8).permute(0, 2, 3, 1)


def pair_cases(
    x_u8: Tensor, device: torch.device
) -> tuple[list[Case], list[Row], dict[str, float]]:
    """Cases, rows for what is not installed, and each checked case's largest error in 1/255."""
    generator = torch.Generator().manual_seed(0)
    size = x_u8.shape[1]
    factors = draw_factors(BATCH, generator)
    x_dev, factors_dev = x_u8.to(device), factors.to(device)
    cases, skipped = [], list[Row]()
    errors: dict[str, float] = {}

    def check(name: str, pair: tuple[Tensor, Tensor], limit: float) -> None:
        n = len(pair[0])
        errors[name] = round(max_error(pair, x_u8[:n], factors[:n]), 5)
        if not errors[name] <= limit:
            raise AssertionError(f"{name} is off by {errors[name]}/255; at most {limit} is allowed")

    def add_ours(name: str, impl: str, dtype: torch.dtype, n: int = BATCH) -> None:
        x, rows = x_dev[:n], factors_dev[:n]
        out = pair_view(x, rows, MEAN, STD, dtype=dtype, impl=impl)
        check(name, out, 1.0 if dtype == torch.float32 else 2.0)
        cases.append(
            Case(name, lambda: pair_view(x, rows, MEAN, STD, dtype=dtype, impl=impl, out=out), n)
        )

    if device.type == "cpu" and has("numba"):
        add_ours("pair_view/fastsc-numba", "numba", torch.float32)
        add_ours("pair_view/fastsc-numba-bf16", "numba", torch.bfloat16)
    elif device.type == "cpu":
        skipped.append(Skipped("pair_view/fastsc-numba", "pip install numba"))
    else:
        add_ours("pair_view/fastsc-compiled", "compiled", torch.float32)
        add_ours("pair_view/fastsc-compiled-bf16", "compiled", torch.bfloat16)
    few = FEW if device.type == "cpu" else BATCH
    add_ours("pair_view/fastsc-reference", "reference", torch.float32, few)

    images = x_dev[:few].permute(0, 3, 1, 2).contiguous()  # as torchvision decodes them
    rows = factors[:few].tolist()
    name = "pair_view/torchvision"
    # Its uint8 path truncates after every step; three steps amplify that to a few levels.
    check(name, torchvision_pair(images, rows), 8.0)
    cases.append(Case(name, lambda: torchvision_pair(images, rows), few))

    peers: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
        "pair_view/kornia": (lambda: kornia_pair(images), few)
    }
    if device.type == "cpu":
        peers["pair_view/albumentations"] = (lambda: albumentations_pair(x_u8), BATCH)
    for name, (make, n) in peers.items():
        try:
            cases.append(Case(name, make(), n))
        except ImportError as error:
            skipped.append(Skipped(name, f"{error}: pip install {name.split('/')[1]}"))

    floor = [torch.empty(BATCH, size, size, 3, device=device) for _ in range(2)]
    cases.append(Case("pair_view/write-floor", lambda: [view.fill_(1.0) for view in floor], BATCH))
    return cases, skipped, errors


def albumentations_pair(x_u8: Tensor) -> Callable[[], object]:
    """Its own jitter and normalization, image by image on (H, W, 3) arrays; channels stay last."""
    import albumentations

    jitter = albumentations.ColorJitter(*((1 - s, 1 + s) for s in STRENGTHS[:3]), (-0.1, 0.1), p=1)
    normalize = albumentations.Normalize(MEAN, STD)
    arrays = list(x_u8.numpy())

    def run() -> None:
        for image in arrays:
            normalize(image=image)
            normalize(image=jitter(image=image)["image"])

    return run


def kornia_pair(images: Tensor) -> Callable[[], object]:
    """Its batched jitter with a set of factors for each image, and its normalization."""
    import kornia

    jitter = kornia.augmentation.ColorJitter(*STRENGTHS, p=1.0)
    mean, std = torch.tensor(MEAN, device=images.device), torch.tensor(STD, device=images.device)

    def run() -> None:
        x = images.float() / 255
        kornia.enhance.normalize(x, mean, std)
        kornia.enhance.normalize(jitter(x), mean, std)

    return run


def ds_cases(device: torch.device) -> list[Case]:
    """Forward and backward into both inputs, (256, 2048) features or (256, 1000) logits."""
    generator = torch.Generator().manual_seed(1)
    impls = ("reference", "compiled") if device.type == "cuda" else ("reference",)
    cases = []
    for kind in ("l2", "relative", "cosine", "js"):
        width = CLASSES if kind == "js" else FEATURES
        f = torch.randn(DS_BATCH, width, generator=generator)
        g = (f + 0.3 * torch.randn(DS_BATCH, width, generator=generator)).to(device)
        f, g = (x.to(device).requires_grad_() for x in (f, g))
        double = ds(f.double(), g.double(), kind, impl="reference")
        for impl in impls:
            torch.testing.assert_close(
                ds(f, g, kind, impl=impl).double(), double, rtol=1e-4, atol=1e-6
            )

            def run(f: Tensor = f, g: Tensor = g, kind: str = kind, impl: str = impl) -> None:
                torch.autograd.grad(ds(f, g, kind, impl=impl), (f, g))

            cases.append(Case(f"ds/{kind}-{impl}", run, unit="ms"))
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    add_arguments(parser)
    add_data_argument(parser)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (default 224)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    options = parse(parser, arguments)
    if options.size < 1 or options.threads < 1:
        parser.error("--size and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    with mistakes(parser):
        x_u8 = images(options.data, options.size)
    cases, skipped, errors = pair_cases(x_u8, options.device)
    rows: list[Row] = [*measure(cases, rounds=options.rounds, device=options.device), *skipped]
    rows += measure(ds_cases(options.device), rounds=options.rounds, device=options.device)
    report(
        rows,
        f"kernels · {options.size}x{options.size}, batch {BATCH}",
        options,
        baselines={"pair_view": "pair_view/torchvision"},
        extra={"max_error_of_255": errors},
    )


if __name__ == "__main__":
    main()
