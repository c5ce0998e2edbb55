"""What the doctor tries, in the order of its table, and what to install where that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from fastsc.diagnostics import probes

TIMEOUT = 120.0  # seconds; the slowest takes 15 on two busy cores, a cold network disk more

DALI = "pip install 'fastsc[dali]' ('fastsc[dali-cu12]' with a CUDA 12 driver)"
GPU = "a GPU with NVIDIA's driver (without, all runs on the CPU)"
COMPILER = "apt-get install g++ python3-dev"
FFCV = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++; pip install 'fastsc[ffcv]'"
EVAL = "pip install 'fastsc[eval]'"
TORCH = "pip install 'torch>=2.11' torchvision"
DECODERS = "FASTSC_DECODER=NAME takes another decoder"


@dataclass(frozen=True)
class Probe:
    """One row of the table, and how to find out."""

    group: str
    name: str
    check: Callable[..., str]  # at the top level of a module: its process imports it by name
    args: tuple[str, ...] = ()
    remedy: str | None = None  # what to install, or to do, if it fails
    needed: bool = False  # whether fastsc cannot do without
    after: str = ""  # the name of an earlier probe without which this one is pointless
    slow: bool = False  # begun early
    timeout: float = TIMEOUT

    @property
    def command(self) -> list[str]:
        """Arguments for Python that run it."""
        return [
            "-m",
            "fastsc.diagnostics.probes",
            f"{self.check.__module__}:{self.check.__name__}",
            *self.args,
        ]


class Result(NamedTuple):
    """What became of a probe."""

    probe: Probe
    works: bool
    detail: str  # what was seen, or the reason; one line
    remedy: str | None = None


def _package(name: str, module: str, remedy: str | None = None, needed: bool = False) -> Probe:
    args, remedy = (name, module), remedy or f"pip install {name}"
    return Probe("packages", name, probes.package, args, remedy, needed)


def _decoder(name: str, remedy: str) -> Probe:
    return Probe("decoders", name, probes.decoder, (name,), remedy)


def _pipelines(name: str, remedy: str, needed: bool = False) -> tuple[Probe, Probe]:
    on_cpu = Probe("pipelines", name, probes.pipeline, (name,), remedy, needed)
    on_gpu = replace(on_cpu, name=f"{name} on cuda", args=(name, "cuda"), after="GPU", needed=False)
    return on_cpu, on_gpu


PROBES: tuple[Probe, ...] = (
    Probe("machine", "system", probes.system),
    Probe("machine", "CPU", probes.cpu),
    Probe("machine", "bf16 on CPU", probes.cpu_bf16),
    Probe("torch", "torch", probes.torch_step, remedy=TORCH, needed=True),
    Probe("torch", "GPU", probes.gpu, remedy=GPU),
    _package("fastsc", "fastsc", "pip install -e . in the checkout", needed=True),
    _package("torchvision", "torchvision", needed=True),
    _package("numpy", "numpy", needed=True),
    _package("numba", "numba", needed=True),
    _package("pillow", "PIL", needed=True),
    _package("timm", "timm"),
    _package("tyro", "tyro", needed=True),
    _package("pyyaml", "yaml", needed=True),
    _package("rich", "rich"),
    _package("safetensors", "safetensors"),
    _package("matplotlib", "matplotlib", EVAL),
    _package("mlxtend", "mlxtend", EVAL),
    _package("triton", "triton", "it comes with torch's build for CUDA"),
    _package("nvidia-dali", "nvidia.dali", DALI),
    _decoder("nvimgcodec", DALI),
    _decoder("simplejpeg", "pip install 'fastsc[jpeg]'"),
    _decoder("torchvision", TORCH),
    _decoder("pil", "pip install pillow"),
    *_pipelines("cpu", DECODERS, needed=True),
    *_pipelines("memory", DECODERS),
    *_pipelines("dali", DALI),
    *_pipelines("ffcv", FFCV),
    Probe("pipelines", "ffcv library", probes.ffcv_library, remedy=FFCV, slow=True),
    Probe("kernels", "pair_view", probes.kernel_pair_view, ("numba",), "pip install numba", True),
    Probe("kernels", "ds", probes.kernel_ds, needed=True),
    Probe("kernels", "torch.compile", probes.torch_compile, remedy=COMPILER, slow=True),
    Probe("kernels", "triton", probes.triton_launch, (), COMPILER, after="GPU", slow=True),
    Probe("distributed", "gloo", probes.all_reduce, ("gloo", "cpu"), TORCH),
    Probe("distributed", "nccl", probes.all_reduce, ("nccl", "cuda"), TORCH, after="GPU"),
    Probe("loggers", "tensorboard", probes.tensorboard, remedy="pip install tensorboard"),
    Probe("loggers", "wandb", probes.wandb, remedy="pip install wandb"),
    Probe("files", "compiled", probes.compiled_code, remedy="NUMBA_CACHE_DIR=FOLDER takes another"),
    Probe("files", "cache", probes.cache_folder, remedy="FASTSC_CACHE_DIR=FOLDER takes another"),
)
