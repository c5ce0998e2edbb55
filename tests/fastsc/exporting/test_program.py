"""ONNX and .pt2: the same logits as the network's, for any number of images, in all forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastsc.evaluation.models.sources import load_classifier
from fastsc.export import main
from fastsc.recipe import configure, dump
from fastsc.run.checkpoint import load_safetensors
from tests.fastsc.exporting.conftest import CLASSES, MEAN, STD, Run

pytestmark = pytest.mark.heavy

SIDE = 64
FORMS = {
    "normalized": [],
    "unit": ["--with-normalization"],
    "uint8": ["--input", "uint8"],
}
NETWORKS = [
    "timm:test_resnet",
    "timm:test_vit",
    "timm:test_efficientnet",
    "timm:test_convnext",
    "resnet18",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_32",
]


def inputs(form: str, n: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n images in a form, and the normalized images that they mean, by plain arithmetic."""
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=generator)
    unit = pixels.permute(0, 3, 1, 2) / 255
    normalized = (unit - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return {"normalized": normalized, "unit": unit, "uint8": pixels}[form], normalized


def onnx_answer(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    (name,) = (item.name for item in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: np.asarray(x)})[0])


def pt2_answer(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(path).module()


def check(run: Path, path: Path, form: str, *, side: int = SIDE) -> None:
    answer = onnx_answer(path) if path.suffix == ".onnx" else pt2_answer(path)
    model = load_classifier(str(run))
    for n in (1, 3, 64):
        given, normalized = inputs(form, n, side)
        with torch.no_grad():
            theirs, ours = answer(given), model(normalized)[1]
        assert theirs.shape == (n, len(CLASSES))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_logits_of_a_network(make_run: Run, tmp_path: Path, network: str, ending: str) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxscript")
    run, path = make_run(network, SIDE), tmp_path / f"model{ending}"
    assert main([str(run), "--to", str(path)]) == 0
    check(run, path, "normalized")


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        ("unit", ".pt2"),
        # uint8 in ONNX is below.
        pytest.param("uint8", ".pt2", marks=pytest.mark.slow),
        pytest.param("unit", ".onnx", marks=pytest.mark.slow),
    ],
)
def test_forms_of_the_input(make_run: Run, tmp_path: Path, form: str, ending: str) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxscript")
    run, path = make_run(), tmp_path / f"model{ending}"
    assert main([str(run), "--to", str(path), *FORMS[form]]) == 0
    check(run, path, form)


@pytest.mark.parametrize(
    ("architecture", "stem", "blurpool"),
    [
        ("fastsc:resnet8w8", "cifar", False),
        pytest.param("resnet18", "cifar", False, marks=pytest.mark.slow),
        # Blurred, too, in the test of an older file.
        pytest.param("resnet18", "imagenet", True, marks=pytest.mark.slow),
    ],
)
def test_networks_that_timm_does_not_have(
    make_run: Run, tmp_path: Path, architecture: str, stem: str, blurpool: bool
) -> None:
    run, path = make_run(architecture, 32, stem, blurpool), tmp_path / "model.pt2"
    assert main([str(run), "--to", str(path)]) == 0
    check(run, path, "normalized", side=32)


def test_the_file_says_what_it_is(make_run: Run, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run, path = make_run(), tmp_path / "model.onnx"
    assert main([str(run), "--to", str(path), "--input", "uint8"]) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, "run"]
    check(run, path, "uint8")
    model = onnx.load(str(path))
    said = {item.key: item.value for item in model.metadata_props}
    assert said["architecture"] == '"timm:test_resnet"'
    assert said["resolution"] == "64"
    (images,) = model.graph.input
    shape = images.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [0, 64, 64, 3]  # 0: any
    assert shape[0].dim_param


def test_another_programs_config_lies_next_to_the_weights(make_run: Run, tmp_path: Path) -> None:
    run, path = make_run("fastsc:resnet8w8", 32, "cifar"), tmp_path / "model.pt2"
    (run / "config.yaml").write_text("server: {port: 80}\n")
    assert main([str(run / "weights.safetensors"), "--to", str(path)]) == 0
    check(run / "weights.safetensors", path, "normalized", side=32)


def test_what_an_older_file_does_not_say_its_run_does(make_run: Run, tmp_path: Path) -> None:
    """Blurred convolutions keep the weights' names: only the configuration tells."""
    run, path = make_run("resnet18", 32, "imagenet", True), tmp_path / "model.pt2"
    state, said = load_safetensors(run / "weights.safetensors")
    del said["blurpool"]
    texts = {key: json.dumps(value) for key, value in said.items()}
    save_file(state, run / "weights.safetensors", texts)
    config = configure("cifar100", data="x", model="resnet18", stem="imagenet", blurpool=True)
    (run / "config.yaml").write_text(dump(config))
    assert main([str(run), "--to", str(path)]) == 0
    check(run, path, "normalized", side=32)
    assert main([str(run), "--to", str(tmp_path / "hub")]) == 2
