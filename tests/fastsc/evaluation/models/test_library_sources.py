"""Models of timm and torchvision: the right weights, preprocessing and names."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize

from fastsc.config.recipes import configure
from fastsc.evaluation.models.sources import ModelOptions, load_classifier, load_source
from fastsc.loading.libraries import (
    _interpolation,
    imagenet_lemmas,
    imagenet_names,
    imagenet_synsets,
)
from fastsc.loading.source import open_source, take_weights
from fastsc.models.build import build_net
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from tests.fastsc.evaluation.models.test_sources import refused

TIMM = "timm:test_resnet"  # half a million weights
LINEAR = "torchvision:mobilenet_v3_small"


def trained(model: str, n: int = 1000) -> nn.Module:
    """As a stranger has it: other weights than fresh ones."""
    torch.manual_seed(5)
    kind, _, name = model.partition(":")
    if kind == "timm":
        return timm.create_model(name, num_classes=n).eval()
    return torchvision.models.get_model(name, num_classes=n).eval()


def nested(state: dict[str, Tensor]) -> dict[str, Any]:
    state = {f"module.{key}": value for key, value in state.items()}
    return {"epoch": 3, "state_dict": state, "args": argparse.Namespace(lr=0.1)}


SAVED: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "w.pth": lambda state, path: torch.save(state, path),
    "w.pt": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "w.pth.tar": lambda state, path: torch.save(nested(state), path),
    "w.safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("file", SAVED)
@pytest.mark.parametrize("model", [TIMM, LINEAR])
def test_weights_out_of_a_file(model: str, file: str, tmp_path: Path) -> None:
    net = trained(model)
    SAVED[file](net.state_dict(), tmp_path / file)
    source = load_source(model, ModelOptions(weights=tmp_path / file))
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(source.classifier(x)[1], net(x))
    assert source.classifier.classes == imagenet_names()
    assert source.synsets == imagenet_synsets()


@pytest.mark.parametrize("model", [TIMM, LINEAR])
def test_as_many_classes_as_the_file_has(model: str, tmp_path: Path) -> None:
    net = trained(model, 7)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    source = load_source(model, ModelOptions(weights=tmp_path / "w.pth"))
    assert source.classifier.n_classes == 7
    assert source.classifier.classes is None
    assert source.synsets is None


def test_another_models_weights_name_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(trained(LINEAR).state_dict(), tmp_path / "w.pth")
    line = refused(TIMM, weights=tmp_path / "w.pth")
    assert "holds another model" in line
    assert "features.0.0.weight first" in line


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    assert "no such file" in refused(TIMM, weights=tmp_path / "absent.pth")
    assert "a folder" in refused(TIMM, weights=tmp_path)
    (tmp_path / "noise.pth").write_bytes(b"noise")
    assert "cannot be read" in refused(TIMM, weights=tmp_path / "noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    assert "cannot be read" in refused(TIMM, weights=tmp_path / "noise.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "list, not a state dict" in refused(TIMM, weights=tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    assert "no tensors" in refused(TIMM, weights=tmp_path / "epoch.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # would run code
    assert "cannot be read" in refused(TIMM, weights=tmp_path / "module.pth")


def test_weights_for_another_resolution_are_converted_as_timm_does_it(tmp_path: Path) -> None:
    theirs = trained("timm:test_vit")
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pth")
    larger = load_source("timm:test_vit", ModelOptions(weights=tmp_path / "w.pth", resolution=192))
    assert larger.classifier.net.pos_embed.shape[1] == 1 + (192 // 16) ** 2
    assert torch.equal(larger.classifier.net.head.weight, theirs.head.weight)


def test_timms_preprocessing() -> None:
    source = load_source(TIMM, ModelOptions(pretrained=False))
    seen, config = source.classifier.preprocessing, timm.get_pretrained_cfg("test_resnet")
    assert config.input_size == (3, seen.resolution, seen.resolution) == (3, 160, 160)
    assert seen.resize == int(160 / config.crop_pct)
    assert (seen.mean, seen.std) == (config.mean, config.std)
    assert seen.interpolation == config.interpolation
    assert source.notes == ()


def test_what_cannot_be_prepared_as_timm_does_it_is_said() -> None:
    name = "test_vit"
    config = timm.get_pretrained_cfg(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "crop_mode", "squash")
        patch.setattr(timm, "get_pretrained_cfg", lambda name: config)
        source = load_source(f"timm:{name}", ModelOptions(pretrained=False))
    (note,) = source.notes
    assert "timm fits its images in by squash" in note
    assert _interpolation("timm:x", "lanczos")[0] == "bicubic"
    assert "resized by lanczos" in _interpolation("timm:x", "lanczos")[1][0]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "file", "resize", "interpolation"),
    [
        ("resnet18", None, 256, InterpolationMode.BILINEAR),
        ("mobilenet_v2", None, 232, InterpolationMode.BILINEAR),  # the default is the second
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth", 256, InterpolationMode.BILINEAR),
        ("efficientnet_b0", None, 256, InterpolationMode.BICUBIC),
    ],
)
def test_torchvisions_preprocessing(
    name: str, file: str | None, resize: int, interpolation: InterpolationMode, tmp_path: Path
) -> None:
    """Of the entry whose file it is, where the file has its name."""
    options = ModelOptions(pretrained=False)
    if file is not None:
        torch.save(trained(f"torchvision:{name}").state_dict(), tmp_path / file)
        options = ModelOptions(weights=tmp_path / file)
    seen = load_classifier(f"torchvision:{name}", options).preprocessing
    assert (seen.resolution, seen.resize) == (224, resize)
    assert seen.interpolation == interpolation.value
    assert (seen.mean, seen.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "from_file"),
    [
        ("googlenet", True),
        pytest.param("googlenet", False, marks=pytest.mark.slow),
        pytest.param("inception_v3", True, marks=pytest.mark.slow),
        ("inception_v3", False),
    ],
)
def test_networks_that_torchvision_normalizes_anew(
    name: str, from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whose auxiliary classifiers are passed over; what trains has the same answers."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"aux_logits": True, "init_weights": False}
    whole = torchvision.models.get_model(name, weights=None, **options)
    entry = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    side = entry.transforms().crop_size[0]
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics are those of the next batch
    with torch.no_grad():
        whole.train()(torch.randn(2, 3, side, side))
    monkeypatch.setattr(type(entry), "get_state_dict", lambda *_, **__: whole.state_dict())
    theirs = torchvision.models.get_model(name, weights=entry).eval().double()
    path = tmp_path / entry.url.rpartition("/")[2]
    torch.save(whole.state_dict(), path)
    asked = ModelOptions(weights=path) if from_file else ModelOptions()
    model = load_classifier(f"torchvision:{name}", asked)
    seen = model.preprocessing
    pixels = torch.rand(2, 3, side, side, dtype=torch.float64)  # in which rounding is no matter
    own = normalize(pixels, list(seen.mean), list(seen.std))
    words: dict[str, Any] = {"init": str(path), "model": name}
    words = words if from_file else {"init": f"torchvision:{name}"}
    source, config = open_source(configure("imagenet", data="data", **words))
    data = config.data
    trained = build_net(config.model.model, 1000, "imagenet", data.resolution)
    take_weights(trained, source, 1000)
    with torch.no_grad():
        expected = theirs(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
        assert (expected[0] - expected[1]).abs().max() > 0.01
        torch.testing.assert_close(model.double()(own)[1], expected)
        logits = trained.eval().double()(normalize(pixels, list(data.mean), list(data.std)))
        torch.testing.assert_close(logits, expected)


def test_each_part_of_the_preprocessing_can_be_overridden() -> None:
    def seen(**options: Any) -> Any:
        return load_classifier(TIMM, ModelOptions(pretrained=False, **options)).preprocessing

    own = seen()
    larger = seen(resolution=192)
    assert larger.resolution == 192
    assert larger.val_crop == own.val_crop  # the same share of the image
    assert larger.resize == Fraction(own.resize) * 192 / 160
    assert seen(resize=320).val_crop == 0.5
    changed = seen(mean=(0.1, 0.2, 0.3), std=(1, 1, 1), interpolation="bicubic")
    assert (changed.mean, changed.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert changed.interpolation == "bicubic"
    assert changed.resize == own.resize
    assert "less than the 160 pixels" in refused(TIMM, pretrained=False, resize=100)
    assert "--mean 123.0" in refused(TIMM, pretrained=False, mean=(123.0, 117.0, 104.0))
    assert "--std 0.0" in refused(TIMM, pretrained=False, std=(0.0, 0.5, 0.5))


def test_the_representation_can_be_chosen() -> None:
    options = ModelOptions(pretrained=False, features="layer2")
    features, _ = load_classifier(TIMM, options)(torch.rand(2, 3, 160, 160))
    assert features.shape == (2, 48)
    assert "no such module" in refused(TIMM, pretrained=False, features="layer9")


def test_fresh_weights_are_the_same_every_time() -> None:
    before = torch.random.get_rng_state()
    one, two = (load_classifier(TIMM, ModelOptions(pretrained=False)).hash for _ in range(2))
    assert one == two
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_that_nobody_knows() -> None:
    assert "did you mean timm:test_resnet" in refused("timm:test_resnett")
    assert "timm has none of this name" in refused("timm:resnet18.no_such_tag")
    assert "did you mean resnet18" in refused("torchvision:resnet18x")
    assert "is not a classifier of images" in refused("torchvision:deeplabv3_resnet50")
    assert "did you mean torchvision:resnet18?" in refused("resnet18")
    assert "a model is a run's folder" in refused("nonsense")
    assert "a model is a run's folder" in refused("timm:")


def test_pretrained_weights_without_a_classifier() -> None:
    line = refused("timm:vit_small_patch14_dinov2")
    assert "its pretrained weights have no classifier" in line


def unreachable(*args: object, **options: object) -> None:
    raise OSError("Name or service not known")


@pytest.mark.parametrize("model", [TIMM, "torchvision:resnet18"])
def test_without_a_network(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    before = huggingface_hub.constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    line = refused(model)
    assert "its pretrained weights cannot be had" in line
    assert "--weights FILE" in line
    assert "--no-pretrained" in line
    assert before == (huggingface_hub.constants.HF_HUB_OFFLINE, socket.getdefaulttimeout())


def test_both_libraries_have_the_classes_in_one_order() -> None:
    synsets, names = imagenet_synsets(), imagenet_names()
    assert len(set(synsets)) == len(set(names)) == 1000
    assert list(synsets) == sorted(synsets)  # as ImageFolder has them
    same = [
        name in (word.strip() for word in lemmas.split(","))
        for name, lemmas in zip(names, imagenet_lemmas(), strict=True)
    ]
    assert np.mean(same) > 0.99  # "crane bird" is WordNet's second "crane"
