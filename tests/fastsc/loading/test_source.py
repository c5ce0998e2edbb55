"""What a source of --init brings, and what contradicts it; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastsc.config.recipes import configure
from fastsc.errors import UserError
from fastsc.loading.libraries import imagenet_names, imagenet_synsets
from fastsc.loading.nets import load_net, network
from fastsc.loading.source import Source, open_source, other_classes, take_weights
from fastsc.models.build import build_net
from fastsc.run.checkpoint import export_safetensors

NAME = "fastsc:resnet8w4"
HERE = "tests.fastsc.loading.test_source:own"


def own() -> nn.Module:
    """A network of somebody's own."""
    return build_net(NAME, 3, "imagenet", 32)


ONE = own()  # an object that is the network


def patched() -> nn.Module:
    """A network whose forward is a function, which a copy would share."""
    net = own()
    inner = net.forward
    net.forward = lambda x: inner(x)  # type: ignore[method-assign]
    return net


def half() -> nn.Module:
    """A network of half precision, which counts in integers."""
    return own().half()


def uncopied() -> nn.Module:
    """A network that cannot be copied."""
    net = own()
    net.scale = net.fc.weight.sum()  # type: ignore[assignment]
    return net


def exported(folder: Path, front: Any = "none", **more: object) -> Path:
    folder.mkdir()
    metadata = {
        "architecture": NAME, "classes": ["a", "b", "c"], "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2), "resolution": 32, "val_crop": 1, "stem": "imagenet",
        "blurpool": False, "front": front, "step": 1, **more,
    }  # fmt: skip
    net = build_net(NAME, 3, "imagenet", 32, front=front)
    export_safetensors(folder / "weights.safetensors", net, metadata)
    return folder


def opened(recipe: str, init: object, **values: Any) -> tuple[Source, Any]:
    return open_source(configure(recipe, data="data", init=str(init), **values))


def test_a_missing_tensor_and_another_head_are_one_line(tmp_path: Path) -> None:
    source, _ = opened("imagenet", exported(tmp_path / "run"))
    del source.state["conv1.weight"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="1 tensors are missing there"):
        take_weights(build_net(NAME, 7, "imagenet", 32), source, 7)


def test_a_recipes_blurpool_and_ramp_are_not_the_sources(tmp_path: Path) -> None:
    _, config = opened("rn18-16", exported(tmp_path / "run"))
    assert not config.model.blurpool
    assert (config.data.resolution, config.data.val_resolution) == (32, None)
    assert (config.data.min_resolution, config.data.resolution_ramp) == (None, (0, 0))
    torch.save(own().state_dict(), tmp_path / "plain.pt")
    _, config = opened("rn18-16", tmp_path / "plain.pt", model=NAME)
    assert not config.model.blurpool


@pytest.mark.parametrize("front", ["none", "luma"])
def test_another_front_end_is_one_line(tmp_path: Path, front: str) -> None:
    with pytest.raises(UserError, match=f"has --front rgb, not --front {front}"):
        opened("imagenet", exported(tmp_path / "run", "rgb"), front=front)


def test_a_functions_network_is_not_the_recipes(tmp_path: Path) -> None:
    _, config = opened("cifar100", HERE)
    assert (config.model.model, config.model.stem) == (HERE, "imagenet")
    folder = exported(tmp_path / "run", architecture=HERE)
    file = folder / "weights.safetensors"
    _, config = opened("cifar100", file, model=HERE)
    assert (config.model.stem, config.data.mean) == ("imagenet", (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=f"name it: --model {HERE} --init {file}$"):
        opened("cifar100", folder)


def test_a_side_that_is_given_is_tried(tmp_path: Path) -> None:
    name = "timm:test_vit"
    torch.save(build_net(name, 1000, "imagenet", 160).state_dict(), tmp_path / "vit.pt")
    _, config = opened("imagenet", tmp_path / "vit.pt", model=name, resolution=96)
    assert config.data.resolution == 96


def test_a_front_end_knows_the_runs_normalization(tmp_path: Path) -> None:
    net = load_net(str(exported(tmp_path / "run", "rgb"))).net
    assert net.get_submodule("conv1").mean == (0.5, 0.5, 0.5)
    _, config = opened("imagenet", tmp_path / "run")
    assert (config.model.front, config.data.std) == ("rgb", (0.2, 0.2, 0.2))


def test_a_head_of_other_classes() -> None:
    assert other_classes(["cat", "dog"], ["cat", "dog"]) is None
    assert other_classes(["0", "1"], ["cat", "dog"]) is None, "names are not known"
    assert other_classes(imagenet_names(), imagenet_synsets()) is None
    assert other_classes(["dog", "cat"], ["cat", "dog"]) == (
        "its head is kept, whose output 0 was 'dog' and is 'cat' now"
    )


def test_an_object_that_is_a_network_is_given_anew_each_time() -> None:
    name = HERE.replace("own", "ONE")
    first, second = load_net(name).net, load_net(name).net
    with torch.no_grad():
        first.fc.weight.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(second.fc.weight, ONE.fc.weight)  # type: ignore[union-attr, arg-type]
    assert ONE.fc.weight.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("function", ["patched", "uncopied"])
def test_a_network_that_no_copy_stands_for_is_used_itself(function: str) -> None:
    net = load_net(HERE.replace("own", function)).net
    with torch.no_grad():
        net.fc.weight.zero_()  # type: ignore[union-attr, operator]
        net.fc.bias.fill_(3)  # type: ignore[union-attr, operator]
        assert (net.eval()(torch.zeros(1, 3, 32, 32)) == 3).all()


def test_weights_of_half_precision_train_in_full() -> None:
    name = HERE.replace("own", "half")
    source, config = opened("cifar100", name)
    net = network(name, 3, "imagenet", config.data.resolution)
    take_weights(net, source, 3)
    for key, value in net.state_dict().items():
        counts = key.endswith("num_batches_tracked")
        assert value.dtype == (torch.int64 if counts else torch.float32), key
        assert torch.equal(value, source.state[key])
