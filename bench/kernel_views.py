"""pair_view and peers as cases for `bench.kernels`; ours and torchvision are checked first."""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from bench.common import Case
from bench.kernel_table import Cases
from fastsc.kernels import pair_view
from fastsc.kernels.devices import has_triton

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
FEW = 8  # images a call for what goes one by one, or slowly on a CPU: a round stays short
CHECKED = 32  # images of a batch that are compared with the oracle, which takes 7 ms for each

# At most so many 255ths off a float64 torchvision. In uint8 torchvision truncates after every step,
# and the steps behind it amplify that.
LIMITS = {torch.float32: 1.0, torch.bfloat16: 2.0, torch.float16: 2.0, torch.uint8: 8.0}


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


def exact_pair(x_u8: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Both views on [0, 1] by torchvision in float64; x_u8 (N, H, W, 3)."""
    x = x_u8.permute(0, 3, 1, 2).double() / 255
    rows = zip(x, factors.tolist(), strict=True)
    return x, torch.stack([torchvision_perturb(image, row) for image, row in rows])


def max_error(pair: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """Largest deviation of both normalized views from `exact_pair`'s, in 1/255."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    views = (view.cpu().double() * std + mean for view in pair)
    return max(255 * float((a - b).abs().max()) for a, b in zip(views, exact, strict=True))


def bytes_moved(size: int, dtype: torch.dtype) -> int:
    """Of one image: its bytes read once, both views written once."""
    return 3 * size * size * (1 + 2 * dtype.itemsize)


def add_pair_views(cases: Cases, x_u8: Tensor) -> None:
    """All implementations and peers; `x_u8` (N, S, S, 3) on the CPU."""
    device, size = cases.device, x_u8.shape[1]
    factors = draw_factors(len(x_u8), torch.Generator().manual_seed(0))
    x_dev, factors_dev = x_u8.to(device), factors.to(device)
    on_cpu = device.type == "cpu"
    few = min(FEW, len(x_u8))  # of the slow ones
    whole = len(x_u8)
    oracle = exact_pair(x_u8[: min(CHECKED, len(x_u8))], factors[:CHECKED])

    def checked(name: str, pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> float:
        n = min(len(pair[0]), len(oracle[0]))
        error = max_error((pair[0][:n], pair[1][:n]), (oracle[0][:n], oracle[1][:n]))
        if not error <= LIMITS[dtype]:
            raise AssertionError(f"{name} is off by {error}/255, more than {LIMITS[dtype]}")
        return error

    def ours(
        name: str, impl: str, dtype: torch.dtype = torch.float32, n: int = whole, threads: int = 1
    ) -> None:
        name = f"pair_view/fastsc-{name}"
        x, rows = x_dev[:n], factors_dev[:n]
        call = functools.partial(
            pair_view, x, rows, MEAN, STD, dtype=dtype, impl=impl, threads=threads
        )
        out = call()
        cases.add(
            Case(name, lambda: call(out=out), n),
            bytes=bytes_moved(size, dtype),
            error=checked(name, out, dtype),
        )

    if on_cpu and importlib.util.find_spec("numba"):
        ours("numba", "numba")
        ours("numba-bf16", "numba", torch.bfloat16)
        ours("numba-fp16", "numba", torch.float16)
        if (cores := len(os.sched_getaffinity(0))) > 1:
            ours(f"numba-{cores}-threads", "numba", threads=cores)
    elif on_cpu:
        cases.skip("pair_view/fastsc-numba", "pip install numba")
    if has_triton(device):
        ours("triton", "triton")
        ours("triton-bf16", "triton", torch.bfloat16)
        ours("triton-fp16", "triton", torch.float16)
    elif not on_cpu:
        cases.skip("pair_view/fastsc-triton", "needs triton and compute capability 8.0")
    slow = few if on_cpu else whole
    if cases.inductor:
        ours("compiled", "compiled", n=slow)
    if cases.inductor and not on_cpu:
        ours("compiled-bf16", "compiled", torch.bfloat16)
    ours("reference", "reference", n=slow)

    batch = x_dev[:slow].permute(0, 3, 1, 2).contiguous()  # as torchvision decodes them
    images = batch[:few]
    rows = factors[:few].tolist()
    cases.add(
        Case("pair_view/torchvision", lambda: torchvision_pair(images, rows), few),
        bytes=bytes_moved(size, torch.float32),
        error=checked("torchvision", torchvision_pair(images, rows), torch.uint8),
    )
    peers: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
        "kornia": (lambda: kornia_pair(batch), slow),
        "kornia-compiled": (lambda: kornia_pair(batch, compiled=True), slow),
    }
    if not cases.inductor:
        del peers["kornia-compiled"]
    if on_cpu:
        peers["albumentations"] = (lambda: albumentations_pair(x_u8), whole)
    for name, (make, n) in peers.items():
        try:
            run = make()
            run()
        except ImportError as problem:
            cases.skip(f"pair_view/{name}", f"{problem}: pip install {name.split('-')[0]}")
        except Exception as problem:  # noqa: BLE001, a peer that does not run is a row that says so
            cases.skip(f"pair_view/{name}", str(problem).strip().splitlines()[0])
        else:
            moved = bytes_moved(size, torch.float32)
            cases.add(Case(f"pair_view/{name}", run, n), bytes=moved)

    floor = [torch.empty(whole, size, size, 3, device=device) for _ in range(2)]
    cases.add(
        Case("pair_view/write-floor", lambda: [view.fill_(1.0) for view in floor], whole),
        bytes=2 * 4 * 3 * size * size,
    )


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


def kornia_pair(images: Tensor, *, compiled: bool = False) -> Callable[[], object]:
    """Its batched jitter with a set of factors for each image, and its normalization."""
    import kornia

    jitter = kornia.augmentation.ColorJiggle(*STRENGTHS, p=1.0)
    mean, std = torch.tensor(MEAN, device=images.device), torch.tensor(STD, device=images.device)

    def pair(x_u8: Tensor) -> tuple[Tensor, Tensor]:
        x = x_u8.float() / 255
        clean: Tensor = kornia.enhance.normalize(x, mean, std)
        return clean, kornia.enhance.normalize(jitter(x), mean, std)

    run = torch.compile(pair) if compiled else pair
    return lambda: run(images)
