"""Runs and files of fastsc as models: the right weights, images and names, or one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastsc import train
from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, Source, load_classifier, load_source
from fastsc.models.build import build_net
from fastsc.models.representation import Outputs
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, Pipeline, build
from fastsc.run.checkpoint import export_safetensors, load_safetensors
from fastsc.run.log import read_log
from fastsc.training.validate import validate


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
