"""Models by what a user calls them: the right weights, images and names, or one clear line."""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
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

from fastsc import train
from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, Source, load_classifier, load_source
from fastsc.loading.libraries import (
    _interpolation,
    imagenet_lemmas,
    imagenet_names,
    imagenet_synsets,
)
from fastsc.models.build import build_net
from fastsc.models.representation import Outputs
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, Pipeline, build
from fastsc.run.checkpoint import export_safetensors, load_safetensors
from fastsc.run.log import read_log
from fastsc.training.validate import validate

TIMM = "timm:test_resnet"  # half a million weights
LINEAR = "torchvision:mobilenet_v3_small"


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run with averaged weights, a crop that floats do not hold and own strengths."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = (
        f"imagenet --pipeline cpu --data {image_folder} --out {out} --model fastsc:resnet8w4 "
        "--resolution 20 --val-crop 0.9 --batch-size 8 --epochs 1 --ema 0.5 --precision fp32 "
        "--strengths 0.1 0.2 0.3 0.05 --workers 2 --lr 0.5 --warmup-epochs 0"
    )
    assert train.main(words.split()) == 0
    return out


def loader(source: Source, folder: Path, **options: Any) -> Pipeline:
    seen = source.classifier.preprocessing
    return build(
        "cpu",
        folder,
        batch_size=8,
        resolution=seen.resolution,
        train=False,
        val_crop=seen.val_crop,
        interpolation=seen.interpolation,
        mean=seen.mean,
        std=seen.std,
        workers=1,
        **options,
    )


class AsTrained(nn.Module):
    """A classifier as `validate` wants it."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model = source.classifier

    def forward(self, x: Tensor) -> Outputs:
        features, logits = self.model(x)
        return Outputs(features, logits, features)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to / "run")
    return to / "run"


def refused(model: str | Path, **options: Any) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(UserError) as caught:
        load_source(str(model), ModelOptions(**options))
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- of fastsc ------------------------------------------------------------------------------------


def test_a_run_is_evaluated_as_it_validated_itself(run: Path, image_folder: Path) -> None:
    source = load_source(str(run))
    logged = [e for e in read_log(run / "log.jsonl") if e["event"] == "epoch"][-1]["val"]
    assert source.strengths == (0.1, 0.2, 0.3, 0.05)
    split = loader(source, image_folder / "val", strengths=source.strengths)
    found = validate(AsTrained(source), split, "cosine")
    split.close()
    assert found is not None
    assert {key: getattr(found, key) for key in ("top1", "top5", "ds_relative", "ds", "n")} == {
        key: logged[key] for key in ("top1", "top5", "ds_relative", "ds", "n")
    }


def test_what_a_run_says_of_itself(run: Path) -> None:
    source = load_source(f"{run}/")
    model, seen = source.classifier, source.classifier.preprocessing
    assert model.classes == ("apple", "boat", "cloud", "door")
    assert source.synsets is None
    assert (seen.resolution, seen.mean, seen.std) == (20, IMAGENET_MEAN, IMAGENET_STD)
    assert seen.val_crop == 0.9
    assert seen.interpolation == "bilinear"
    assert not model.training


@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0, 0.7])
def test_the_crop_of_a_file_is_kept_to_the_bit(fraction: float, run: Path, tmp_path: Path) -> None:
    state, metadata = load_safetensors(run / "weights.safetensors")
    net = build_net("fastsc:resnet8w4", 4, "imagenet", 20)
    net.load_state_dict(state)
    for resolution in (9, 20, 29):
        path = tmp_path / "net.safetensors"
        export_safetensors(path, net, metadata | {"val_crop": fraction, "resolution": resolution})
        seen = load_classifier(str(path)).preprocessing
        assert (seen.val_crop, seen.resolution) == (fraction, resolution)


def test_a_lone_file_of_ours_is_enough(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    shutil.copy(run / "weights.safetensors", path)
    source, whole = load_source(str(path)), load_source(str(run))
    assert source.strengths is None
    assert source.classifier.hash == whole.classifier.hash
    (tmp_path / "config.yaml").write_text("somebody: else's\n")
    assert load_source(str(path)).classifier.hash == whole.classifier.hash


def test_an_older_file_takes_its_crop_from_its_runs_options(run: Path, tmp_path: Path) -> None:
    older = copied(run, tmp_path)
    state, metadata = load_safetensors(run / "weights.safetensors")
    net = build_net("fastsc:resnet8w4", 4, "imagenet", 20)
    net.load_state_dict(state)
    kept = {k: v for k, v in metadata.items() if k not in ("val_crop", "blurpool", "step")}
    export_safetensors(older / "weights.safetensors", net, kept)
    assert load_classifier(str(older)).hash == load_classifier(str(run)).hash
    (older / "config.yaml").write_text("somebody: else's\n")
    assert "somebody" in refused(older)


def test_blurred_strides_and_outputs_without_a_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = build_net("resnet18", 5, "cifar", 32, blurpool=True)
    metadata = {
        "architecture": "resnet18", "classes": ["a", "b"], "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD, "resolution": 32, "val_crop": 1, "stem": "cifar", "blurpool": True,
    }  # fmt: skip
    export_safetensors(tmp_path / "net.safetensors", net, metadata)
    model = load_classifier(str(tmp_path / "net.safetensors"))
    assert model.classes == ("a", "b", "output 2", "output 3", "output 4")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x)[1], net.eval()(x))


def test_a_run_that_has_no_weights_yet(run: Path, tmp_path: Path) -> None:
    unfinished = copied(run, tmp_path)
    (unfinished / "weights.safetensors").unlink()
    line = refused(unfinished)
    assert "has no weights.safetensors yet" in line
    assert f"python -m fastsc.train {unfinished}/config.yaml --out {unfinished} --resume" in line


def test_folders_and_files_that_are_no_models(run: Path, tmp_path: Path) -> None:
    assert "not a run's folder" in refused(tmp_path)
    assert "no such folder or file" in refused(tmp_path / "absent")
    assert "no such folder or file" in refused("absent.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert "timm:NAME --weights" in refused(tmp_path / "theirs.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "bare.safetensors")
    assert "it has no architecture" in refused(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:-100])
    assert "not a weights file of fastsc" in refused(tmp_path / "cut.safetensors")
    line = refused(run, weights=run / "weights.safetensors")
    assert "has weights of its own" in line


def test_weights_that_are_not_finite(run: Path, tmp_path: Path) -> None:
    broken = copied(run, tmp_path)
    state, metadata = load_safetensors(broken / "weights.safetensors")
    net = build_net("fastsc:resnet8w4", 4, "imagenet", 20)
    net.load_state_dict(state)
    next(net.parameters()).data.view(-1)[3] = float("nan")
    export_safetensors(broken / "weights.safetensors", net, metadata)
    assert "weights are not finite" in refused(broken)


# --- of timm and torchvision ----------------------------------------------------------------------


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
def test_auxiliary_classifiers_of_a_file_are_passed_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.googlenet(aux_logits=True, init_weights=False, transform_input=True)
    path = tmp_path / "googlenet-1378be20.pth"
    torch.save(net.state_dict(), path)
    model = load_classifier("torchvision:googlenet", ModelOptions(weights=path))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(x)[1], net.eval()(x))


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


# --- of one's own ---------------------------------------------------------------------------------

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.head = nn.Linear(3, n)

    def forward(self, x):
        return self.head(x.mean((2, 3)))

thousand = lambda: Net(1000)
ready = Net()
half = lambda: Net().half()

class Groups:
    net = staticmethod(Net)

class Segmentation(Net):
    def forward(self, x):
        return {"out": x}

class Map(Net):
    def forward(self, x):
        return x + self.head.weight.sum()

class Odd(Net):
    def forward(self, x, y):
        return x

def broken():
    raise KeyError("no\\nsuch thing")

def numbers():
    return [1, 2]

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current directory."""
    name = "nets_of_a_stranger"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_function_of_ones_own(module: str) -> None:
    source = load_source(f"{module}:Net")
    model, seen = source.classifier, source.classifier.preprocessing
    assert (seen.resolution, seen.resize, seen.val_crop) == (224, 256, 0.875)
    assert (seen.mean, seen.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (model.n_classes, model.classes, source.synsets) == (3, None, None)
    assert model.name == f"{module}:Net"
    assert load_classifier(f"{module}:ready").n_classes == 3
    assert load_classifier(f"{module}:Groups.net").n_classes == 3


def test_a_thousand_outputs_are_likely_imagenets(module: str) -> None:
    source = load_source(f"{module}:thousand")
    assert source.synsets == imagenet_synsets()
    assert source.classifier.classes is None


def test_half_precision_becomes_float32(module: str) -> None:
    features, _ = load_classifier(f"{module}:half")(torch.rand(1, 3, 224, 224))
    assert features.dtype == torch.float32


def test_a_function_with_weights_of_a_file(module: str, tmp_path: Path) -> None:
    net = nn.ModuleDict({"head": nn.Linear(3, 3)})
    torch.save(net.state_dict(), tmp_path / "w.pt")
    model = load_classifier(f"{module}:Net", ModelOptions(weights=tmp_path / "w.pt"))
    assert torch.equal(model.net.head.weight, net["head"].weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("absent", "has no attribute 'absent'"),
        ("broken", "KeyError"),
        ("numbers", "gives list, not a torch.nn.Module"),
        ("leaves", "SystemExit: 3"),
        ("Segmentation", "does not return one tensor of logits"),
        ("Map", "is not a classifier"),
        ("Odd", "cannot be asked: TypeError"),
    ],
)
def test_what_is_no_classifier(function: str, line: str, module: str) -> None:
    assert line in refused(f"{module}:{function}")


def test_modules_that_cannot_be_imported(module: str, tmp_path: Path) -> None:
    assert "No module named 'no_such_module'" in refused("no_such_module:net")
    (tmp_path / "wrong_syntax.py").write_text("def net(:\n")
    assert "SyntaxError" in refused("wrong_syntax:net")


# --- ImageNet -------------------------------------------------------------------------------------


def test_both_libraries_have_the_classes_in_one_order() -> None:
    synsets, names = imagenet_synsets(), imagenet_names()
    assert len(set(synsets)) == len(set(names)) == 1000
    assert list(synsets) == sorted(synsets)  # as ImageFolder has them
    same = [
        name in (word.strip() for word in lemmas.split(","))
        for name, lemmas in zip(names, imagenet_lemmas(), strict=True)
    ]
    assert np.mean(same) > 0.99  # "crane bird" is WordNet's second "crane"
