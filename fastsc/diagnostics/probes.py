"""What `fastsc.doctor` tries: a probe does a thing for real, in a process of its own.

Each returns one line on what it saw and fails by an exception. What it needs it imports itself, so
that a library that crashes the interpreter takes no other probe with it.

`python -m fastsc.diagnostics.probes pipeline dali` runs one by hand, with the traceback of what
fails.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import platform
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastsc.errors import UserError, first_line
from fastsc.run import environment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

LAST_RESORT = 600  # seconds, then a probe ends itself: its doctor may have been killed

# Largest differences that still agree, in levels of 255.
DECODED = 2  # from PIL's pixels; most decoders are the same library and give 0
ENCODED = 8  # from the pixels that were encoded, for PIL itself
FAST_DCT = 6  # FFCV from PIL's pixels: it takes libjpeg-turbo's fast transform
RESIZED = 6  # from PIL's crop and resize: DALI's filter rounds otherwise, nvJPEG's transform too
PERTURBED = 1  # of a fast kernel from the reference: the kernels' contract


class ProbeError(Exception):
    """Does not work, for this reason; a `remedy` replaces the one that the probe has anyway."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def system() -> str:
    return f"Python {platform.python_version()}, {platform.platform()}"


def cpu() -> str:
    # The GPUs have a row of their own, and torch may be what does not work here.
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(device_count=int))  # type: ignore[assignment]
    hardware = environment.hardware()
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"


def cpu_bf16() -> str:
    import torch

    from fastsc.distributed.devices import pick_precision

    if pick_precision("auto", torch.device("cpu")) != "bf16":
        raise ProbeError("this CPU has no instructions for it: --precision auto is fp32 on the CPU")
    _multiply(torch.ones(64, 64, dtype=torch.bfloat16))
    return "native: --precision auto takes it on the CPU"


def torch_step() -> str:
    import torch

    x = torch.ones(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    torch.nn.functional.conv2d(x, torch.ones(4, 3, 1, 1)).sum().backward()
    _require(x.grad is not None and (x.grad == 4).all(), "a convolution's gradient is wrong")
    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "a CPU build"
    if torch.distributed.is_nccl_available():
        build += f", with NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    return f"{torch.__version__}, {build}"


def gpu() -> str:
    """One entry a GPU, separated by semicolons."""
    import torch

    if torch.version.cuda is None:
        raise ProbeError(
            "this torch is a CPU build", "a CUDA build of torch: pytorch.org/get-started"
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:  # no driver, one too old, no device
        raise ProbeError(str(error).split(". ")[0]) from None
    devices = []
    for i in range(torch.cuda.device_count()):
        _multiply(torch.ones(64, 64, device=f"cuda:{i}"))
        about = torch.cuda.get_device_properties(i)
        bf16 = "native bf16" if about.major >= 8 else "no native bf16"
        size, capability = about.total_memory / 2**30, f"{about.major}.{about.minor}"
        devices.append(f"{about.name}, {size:.1f} GiB, capability {capability}, {bf16}")
    return "; ".join(devices)


def package(name: str, module: str) -> str:
    version = environment.versions().get(name) or environment.version_of(name)
    if version is None:
        raise ProbeError("not installed")
    importlib.import_module(module)
    return version


def decoder(name: str) -> str:
    """Decodes a JPEG, whole and in part, and compares with PIL (PIL: with what was encoded)."""
    import numpy as np

    from fastsc.pipelines.decode import pick

    pixels, jpeg, by_pil = _picture(90)
    decode = pick(name)[1]
    expected, of, bound = by_pil, "PIL", DECODED
    if name == "pil":
        expected, of, bound = pixels, "the pixels that were encoded", ENCODED
    worst = 0
    for top, left, height, width in ((0, 0, 64, 80), (5, 9, 33, 40)):
        region = decode(jpeg, top, left, height, width).astype(int)
        wanted = expected[top : top + height, left : left + width]
        worst = max(worst, np.abs(region - wanted).max())
    return f"a JPEG, whole and in part: {_within(worst, bound, of)}"


def pipeline(name: str, device: str = "cpu") -> str:
    """Hands over one batch of pairs of a small ImageFolder, or FFCV dataset, as PIL makes them."""
    import numpy as np
    import torch
    from PIL import Image

    from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build, open_beton, scan

    expected, kind = [], Image.Resampling.BOX if name == "ffcv" else Image.Resampling.BILINEAR
    with tempfile.TemporaryDirectory() as folder:
        for i in range(8):
            path = Path(folder, f"class{i // 4}", f"{i}.jpg")
            path.parent.mkdir(exist_ok=True)
            _, jpeg, decoded = _picture(30 * i)
            path.write_bytes(jpeg)
            square = Image.fromarray(decoded).crop((12, 4, 68, 60))  # 7/8 of the shorter side
            expected.append(np.asarray(square.resize((32, 32), kind)))
        index = scan(folder, use_cache=False, progress=False)
        if name == "ffcv":
            from fastsc.pipelines.beton_writer import BetonOptions, write_beton

            write_beton(index, beton := Path(folder, "train.beton"), BetonOptions(jpeg_share=0))
            index = open_beton(beton)
        loader = build(name, index, batch_size=8, resolution=32, train=False, device=device)
        (batch,) = loader
        loader.close()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    clean = 255 * (batch.clean.cpu().permute(0, 2, 3, 1) * std + mean)
    worst = (clean - torch.from_numpy(np.stack(expected))).abs().max()
    _require(batch.target.tolist() == [0] * 4 + [1] * 4, "wrong classes")
    assert batch.perturbed is not None
    _require(batch.perturbed.isfinite().all(), "the perturbed view is not finite")
    _require(not torch.equal(batch.clean, batch.perturbed), "the perturbed view is the clean one")
    return f"{loader.decoder}: a batch of pairs, clean {_within(worst, RESIZED, 'PIL')}"


def ffcv_library() -> str:
    """Decodes and resizes by FFCV's C extension."""
    from importlib.metadata import version

    import numpy as np
    from ffcv.libffcv import imdecode, resize_crop

    _, jpeg, by_pil = _picture(90)
    decoded, half = np.zeros_like(by_pil), np.zeros((32, 40, 3), np.uint8)
    imdecode(np.frombuffer(jpeg, np.uint8), decoded, 64, 80, 64, 80, 0, 0, 1, 1, False, False)
    agrees = _within(np.abs(decoded.astype(int) - by_pil).max(), FAST_DCT, "PIL")
    resize_crop(decoded, 0, 64, 0, 80, half)  # OpenCV's INTER_AREA: the mean of 2 × 2 pixels
    means = decoded.reshape(32, 2, 40, 2, 3).mean((1, 3))
    _require(np.abs(half - means).max() <= 1, "it does not resize by the mean of pixels")
    return f"{version('ffcv')}: a JPEG, {agrees}, a resize"


def kernel_pair_view(impl: str, device: str = "cpu") -> str:
    import numpy as np
    import torch

    from fastsc.kernels import pair_view

    x_u8 = torch.from_numpy(np.stack([_picture(25 * i)[0] for i in range(8)]))
    spread = torch.linspace(-1, 1, 8)
    factors = torch.stack([1 + 0.4 * spread, 1 - 0.4 * spread, 1 + 0.4 * spread, 0.1 * spread], 1)
    unit = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std: the views stay on [0, 1]
    wanted = pair_view(x_u8, factors, *unit, impl="reference")
    views = pair_view(x_u8.to(device), factors.to(device), *unit, impl=impl)
    worst = max((a.cpu() - b).abs().max() for a, b in zip(views, wanted, strict=True))
    return f"{impl}: {_within(255 * worst, PERTURBED, 'the reference')}"


def kernel_ds(impl: str = "reference", device: str = "cpu") -> str:
    import torch

    from fastsc.kernels import ds
    from fastsc.kernels.distance import KINDS

    f = torch.linspace(-1, 1, 24, device=device).reshape(4, 6).requires_grad_()
    g = f.detach().roll(1, 0) + 0.5
    for kind in KINDS:
        for other, apart in ((f, False), (g, True)):
            distance = ds(f, other, kind, impl=impl)
            (slope,) = torch.autograd.grad(distance, f)
            _require(slope.isfinite().all(), f"{kind}: the gradient is not finite")
            _require((distance > 0) == slope.any() == apart, f"{kind}: not 0 exactly where f is g")
    return f"{impl}: {', '.join(KINDS)}, with gradients"


def torch_compile() -> str:
    os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # to try the CPU's vector units costs 5 s more
    import torch
    from torch._inductor.cpp_builder import get_cpp_compiler

    from fastsc.kernels import ds

    f, g = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
    error = (ds(f, g, impl="compiled") - ds(f, g, impl="reference")).abs()
    _require(error < 1e-5, "the compiled ds is not the reference's")
    return f"ds for the CPU, by {get_cpp_compiler()}"


def triton_launch() -> str:
    import triton

    seen = f"pair_view {kernel_pair_view('triton', 'cuda')}; ds {kernel_ds('triton', 'cuda')}"
    return f"{triton.__version__}: {seen}"


def all_reduce(backend: str, device: str) -> str:
    """A sum over one rank."""
    import torch
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/at", rank=0, world_size=1)
        x = torch.full((3,), 2.0, device=device)
        dist.all_reduce(x)
        _require(x.tolist() == [2, 2, 2], "the sum over one rank is wrong")
        dist.destroy_process_group()
    return "all_reduce over one rank"


def tensorboard() -> str:
    importlib.import_module("tensorboard")  # missing more often than torch: say so sooner
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_scalar("loss", 1.0, 0)
        writer.flush()
        _require(any(file.stat().st_size for file in Path(folder).iterdir()), "it wrote nothing")
    return "wrote an event file"


def wandb() -> str:
    wandb: Any = importlib.import_module("wandb")
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="fastsc-doctor")
        run.log({"loss": 1.0})
        run.finish()
        _require(list(Path(folder).rglob("*.wandb")), "it wrote nothing")
    return f"{wandb.__version__}: wrote a run, offline"


def cache_folder() -> str:
    from fastsc.pipelines.cache import folder

    try:
        where = folder()
    except RuntimeError:
        raise ProbeError("this user has no home: every run reads all headers anew") from None
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=where) as file:
        file.write(b"fastsc")
    return f"{where} can be written"


def compiled_code() -> str:
    """Where numba keeps what it compiles."""
    from fastsc.kernels.views_numba import normalize_batch

    if (where := normalize_batch.stats.cache_path) is None:
        raise ProbeError("can be written nowhere: every process compiles anew, for half a minute")
    return f"kept in {where}"


def _picture(blue: int) -> tuple[Bytes, bytes, Bytes]:
    """(64, 80, 3) pixels, unlike their mirror images and smooth; as a JPEG; and that by PIL."""
    import numpy as np
    from PIL import Image

    pixels, file = np.full((64, 80, 3), blue, np.uint8), io.BytesIO()
    pixels[..., 0] = np.linspace(20, 230, 64)[:, None]  # redder downwards
    pixels[..., 1] = np.linspace(40, 200, 80)  # greener to the right
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return pixels, file.getvalue(), np.asarray(Image.open(file))


def _within(worst: Any, bound: float, of: str) -> str:
    apart = f"{float(worst):.3g}/255 from {of}"
    _require(worst <= bound, f"{apart}, where at most {bound} is expected")
    return f"{apart} (bound {bound})"


def _require(holds: Any, otherwise: str) -> None:
    """What `assert` says, and Python's -O does not leave out."""
    if not holds:
        raise ProbeError(otherwise)


def _multiply(ones: Any) -> None:
    _require(((ones @ ones) == len(ones)).all(), "a product of ones is wrong")


def _reason(error: BaseException) -> str:
    """The first line of an error, after its type unless the text is ours."""
    line, kind = first_line(error), type(error).__name__
    ours = isinstance(error, (ProbeError, UserError, ModuleNotFoundError))
    return line if ours or line == kind else f"{kind}: {line}"


def main(argv: list[str]) -> int:
    """Runs [MODULE:]FUNCTION with the rest as its arguments; the answer is a line of JSON.

    Returns 0 whether it works or not: any other status of this process is a crash.
    """
    if not argv:
        sys.exit("usage: python -m fastsc.diagnostics.probes FUNCTION [ARG ...]")
    # Libraries write to stdout what they like: the answer has it alone, they get stderr.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # where C code hangs, Python's handler would wait
    signal.alarm(LAST_RESORT)
    module, _, function = argv[0].rpartition(":")
    try:
        check = getattr(importlib.import_module(module or "fastsc.diagnostics.probes"), function)
        reply = {"works": True, "detail": check(*argv[1:]), "remedy": None}
    except (Exception, SystemExit) as error:  # noqa: BLE001, whatever it is, it is the answer
        traceback.print_exc()
        remedy = getattr(error, "remedy", None)
        reply = {"works": False, "detail": _reason(error), "remedy": remedy}
    with answer:
        answer.write(json.dumps(reply) + "\n")
    return 0


if __name__ == "__main__":
    from fastsc.diagnostics import probes  # whose ProbeError is the one that probes raise

    sys.exit(probes.main(sys.argv[1:]))
