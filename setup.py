"""Packaging. The metadata live here, the tools' settings in pyproject.toml.

``fastsc/pipelines`` and ``fastsc/kernels`` are relative symbolic links to the top-level folders:
``find_packages`` follows them, so a wheel, an sdist and an editable install all see one package.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """The version in fastsc/__init__.py, read without importing the package."""
    text = (ROOT / "fastsc" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("fastsc/__init__.py has no __version__ line")
    return found[1]


if not (ROOT / "fastsc" / "kernels" / "__init__.py").is_file():
    raise SystemExit(
        "fastsc/kernels is no link to ../kernels: this checkout has lost its symbolic links; "
        "run `git config core.symlinks true && git checkout -- fastsc` on a file system with links"
    )

JPEG = ["simplejpeg>=1.9"]  # decode_jpeg(buffer=…)
ONNX = ["onnx", "onnxruntime", "onnxscript"]
HF = ["pyarrow"]
DALI_CU13 = ["nvidia-dali-cuda130"]

setup(
    name="fastsc",
    version=version(),
    description="Semantically continuous image classifiers, trained at the speed of the decoder",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["fastsc", "fastsc.*"]),
    package_data={
        "fastsc": ["py.typed", "recipes/*.yaml"],
        "fastsc.reproduction": ["page/*.j2", "studies/*.yaml"],
        "fastsc.evaluation": [
            "report/*.j2",
            "report/*.css",
            "report/*.js",
            "report/questions/*.yaml",
        ],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy",
        "numba",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "timm",
        "tyro",
    ],
    extras_require={
        "dali": DALI_CU13,
        "dali-cu13": DALI_CU13,
        "dali-cu12": ["nvidia-dali-cuda120"],
        "ffcv": ["ffcv>=1.0.2", "opencv-python"],
        "hf": HF,
        "jpeg": JPEG,
        "eval": [  # and torchattacks, which `make` installs without its needs: they are of 2021
            "captum",
            "imagecorruptions-imaug",
            "jinja2",
            "matplotlib",
            "mlxtend",
            "scikit-image",
            "scikit-learn",
            "scipy",
            "umap-learn",
        ],
        "export": [*ONNX, "huggingface_hub"],
        "log": ["tensorboard", "wandb"],
        "bench": ["albumentations", "datasets", "kornia", "webdataset"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "dev": [
            *JPEG,  # the cpu pipeline is tested with each of its decoders
            "datasets",
            "hypothesis",
            "import-linter>=2.7",  # acyclic_siblings contracts
            "lightning",  # one of the examples
            "mypy",
            *HF,
            *ONNX,
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "tensorboard",
            "setuptools>=77",  # not in a Python 3.12 venv; the wheel test builds without isolation
            "types-PyYAML",
        ],
    },
)
