"""Training that begins with a network that one has: its forms, and the ways to get it wrong."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fastsc.config.options import parse
from fastsc.config.recipes import dump, load_recipe
from fastsc.loading import libraries
from fastsc.models.build import build_net
from fastsc.run.checkpoint import load_safetensors
from fastsc.run.folder import RunFolder
from fastsc.run.resume import of_begun
from fastsc.training.loop import _begun_from
from tests.fastsc.runs import SMALL, events, run, weights
from tests.fastsc.training.test_train_mistakes import mistake

MODEL = "fastsc:resnet8w8"
# One step at a rate that moves nothing, so that what was begun with comes out.
STILL = ["--epochs", "1", "--max-steps", "1", "--lr", "1e-30", "--weight-decay", "0"]
STILL += ["--val", "none"]
TORCHVISION = ["--model", "squeezenet1_1", "--resolution", "32"]


def network(n: int = 4, name: str = MODEL, seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return build_net(name, n, "imagenet", 32)


def own() -> nn.Module:
    """What `tests.fastsc.training.test_init:own` is."""
    return network()


@pytest.fixture(scope="module")
def begun(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with averaged weights and a preprocessing that is not ImageNet's."""
    out = tmp_path_factory.mktemp("runs") / "first"
    options = ["--mean", "0.5", "0.4", "0.3", "--interpolation", "bicubic", "--val-crop", "1"]
    assert run(image_folder, out, "--ema", "0.5", *options, "--epochs", "1", "--val", "none") == 0
    return out


def assert_taken(out: Path, state: dict[str, Any]) -> None:
    got = weights(out)
    assert got.keys() == state.keys()
    for key, value in state.items():
        if "running" not in key and "num_batches" not in key:  # which one step moves
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)


FORMS: dict[str, Callable[[Path, dict[str, Any]], str]] = {
    "bare.pt": lambda path, state: save(path, state),
    "nested.pth": lambda path, state: save(path, {"state_dict": state, "epoch": 3}),
    "model.pt": lambda path, state: save(path, {"model": state, "optimizer": {"param_groups": []}}),
    "averaged.pt": lambda path, state: save(
        path, {"model": {k: v * 0 for k, v in state.items()}, "model_ema": state}
    ),
    "parallel.pt": lambda path, state: save(path, {f"module.{k}": v for k, v in state.items()}),
    "compiled.pt": lambda path, state: save(path, {f"_orig_mod.{k}": v for k, v in state.items()}),
    "plain.safetensors": lambda path, state: save_file(state, path) or str(path),
    "function": lambda path, state: "tests.fastsc.training.test_init:own",
}


def save(path: Path, contents: object) -> str:
    torch.save(contents, path)
    return str(path)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file(image_folder: Path, tmp_path: Path, name: str) -> None:
    state = network().state_dict()
    init = FORMS[name](tmp_path / name, state)
    assert run(image_folder, tmp_path / "run", "--init", init, *STILL) == 0
    assert_taken(tmp_path / "run", state)
    (header,) = events(tmp_path / "run", "header")
    assert header["init"] == init
    assert len(header["init_hash"]) == 16
    assert header["new_head"] is None
    assert header["mean"] == [0.485, 0.456, 0.406], "nothing is known of it"


def test_a_runs_averaged_weights_with_its_preprocessing(
    image_folder: Path, tmp_path: Path, begun: Path
) -> None:
    out = tmp_path / "run"
    words = ["cifar100", "--pipeline", "cpu", "--data", str(image_folder), "--out", str(out)]
    from fastsc.train import main

    assert main([*words, *STILL, "--batch-size", "8", "--init", str(begun)]) == 0
    assert_taken(out, weights(begun))  # the exported ones are the average
    config, (header,) = load_recipe(str(out / "config.yaml")), events(out, "header")
    assert config.model.model == header["model"] == MODEL  # not the recipe's
    assert (config.data.interpolation, config.data.val_crop) == ("bicubic", 1.0)
    assert config.data.mean == tuple(header["mean"]) == (0.5, 0.4, 0.3)
    _, stored = load_safetensors(out / "weights.safetensors")
    assert (stored["mean"], stored["interpolation"]) == ([0.5, 0.4, 0.3], "bicubic")


def test_what_is_given_wins_over_the_source(
    image_folder: Path, tmp_path: Path, begun: Path
) -> None:
    out = tmp_path / "run"
    more = ["--init", str(begun / "weights.safetensors"), "--resolution", "40", *STILL]
    assert run(image_folder, out, *more) == 0
    config = load_recipe(str(out / "config.yaml"))
    assert (config.data.resolution, config.data.mean) == (40, (0.5, 0.4, 0.3))


def test_a_head_for_other_classes_is_new_and_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = network(9).state_dict()
    init = save(tmp_path / "nine.pt", state)
    assert run(image_folder, tmp_path / "run", "--init", init, *STILL) == 0
    assert "fc is new, for 4 outputs in place of 9" in capsys.readouterr().out
    assert events(tmp_path / "run", "header")[0]["new_head"] == "fc"
    assert_taken(tmp_path / "run", {**state, **fresh_head(tmp_path / "run")})


def fresh_head(out: Path) -> dict[str, Any]:
    head = {k: v for k, v in weights(out).items() if k.startswith("fc.")}
    assert head["fc.weight"].shape[0] == 4
    return head


def nine() -> nn.Module:
    """A network of somebody's own with other classes, ten of which there are not."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9)
    )


def test_a_functions_network_gets_a_head_for_the_classes(
    image_folder: Path, tmp_path: Path
) -> None:
    init = "tests.fastsc.training.test_init:nine"
    assert run(image_folder, tmp_path / "run", *STILL, "--init", init, "--model", init) == 0
    assert weights(tmp_path / "run")["3.weight"].shape == (4, 4)


@pytest.mark.parametrize("model", ["squeezenet1_1", "timm:test_resnet"])
def test_pretrained(
    image_folder: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries' own way, of which the download alone is left out."""
    seen = build_net(model, 1000, "imagenet", 64)
    if model.startswith("timm:"):
        create = timm.create_model

        def created(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
            assert pretrained
            net = create(name, **options)
            net.load_state_dict(seen.state_dict())
            return net

        monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: (
            created(name, pretrained=True, **options) if pretrained
            else create(name, pretrained=False, **options)
        ))  # fmt: skip
    else:
        monkeypatch.setattr(
            torchvision.models.SqueezeNet1_1_Weights,
            "get_state_dict",
            lambda *args, **options: copy.deepcopy(seen.state_dict()),
        )
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), "--model", model]
    more = ["--batch-size", "8", "--workers", "1", "--init", "pretrained", "--resolution", "64"]
    from fastsc.train import main

    assert main([*words, *STILL, *more, "--out", str(tmp_path / "run")]) == 0
    head = "classifier.1" if model == "squeezenet1_1" else "fc"
    (header,) = events(tmp_path / "run", "header")
    assert header["new_head"] == head
    state = {k: v for k, v in seen.state_dict().items() if not k.startswith(f"{head}.")}
    got = weights(tmp_path / "run")
    for key, value in state.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)
    if model.startswith("timm:"):
        config = timm.get_pretrained_cfg("test_resnet")
        assert header["mean"] == list(config.mean)
        assert header["interpolation"] == config.interpolation


# --- the wrong ways -------------------------------------------------------------------------------


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


def cut(path: Path, state: dict[str, Any]) -> str:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-2000])
    return str(path)


def quantized(path: Path, state: dict[str, Any]) -> str:
    weight = torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)
    return save(path, {**state, "fc.weight": weight})


def nested_quantized(path: Path, state: dict[str, Any]) -> str:
    weight = torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)
    return save(path, {"state_dict": {**state, "fc.weight": weight}})


def lost() -> nn.Module:
    """A network whose training went wrong."""
    net = network()
    net.get_buffer("bn1.running_var").fill_(float("inf"))
    return net


class Counted(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: int) -> None:
        assert state == 3


def counted() -> nn.Module:
    """A network with such a layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Counted(3, 4))


COUNTED = "tests.fastsc.training.test_init:counted"
WRONG: dict[str, tuple[Callable[[Path, dict[str, Any]], str], list[str], str]] = {
    "architecture": (
        lambda path, state: save(path, network(name="fastsc:resnet11w8").state_dict()), [],
        "holds another model",
    ),
    "shape": (
        lambda path, state: save(path, {**state, "conv1.weight": torch.zeros(8, 3, 5, 5)}), [],
        "conv1.weight is (8, 3, 5, 5) there",
    ),
    "missing": (
        lambda path, state: save(path, {k: v for k, v in state.items() if "bn1" not in k}), [],
        "are missing there",
    ),
    "surplus": (
        lambda path, state: save(path, {**state, "extra.weight": torch.zeros(2, 2)}), [],
        "unknown here, extra.weight first",
    ),
    "code": (lambda path, state: save(path, {"model": Code()}), [], "would run code of"),
    "cut": (cut, [], "cut or damaged"),
    "quantized": (quantized, [], "quantized"),
    "nested quantized": (nested_quantized, [], "take those that it was made from"),
    "integers": (
        lambda path, state: save(path, {**state, "fc.weight": state["fc.weight"].char()}), [],
        "fc.weight is int8 there: weights of a quantized network?",
    ),
    "not a number": (
        lambda path, state: save(path, {**state, "fc.bias": state["fc.bias"] / 0 * 0}), [],
        "its weights are not finite (fc.bias)",
    ),
    "nobody's not a number": (
        lambda path, state: "tests.fastsc.training.test_init:lost", [],
        "its weights are not finite (bn1.running_var)",
    ),
    "nested lora": (
        lambda path, state: save(path, {"model": {"base.fc.lora_A.weight": torch.zeros(2, 8)}}),
        [], "LoRA adapter",
    ),
    "extra state": (
        lambda path, state: COUNTED, ["--model", COUNTED],
        "_extra_state is no tensor but int",
    ),
    "lora": (
        lambda path, state: save_file({"base.fc.lora_A.weight": torch.zeros(2, 8)}, path)
        or str(path), [], "LoRA adapter",
    ),
    "empty": (lambda path, state: str(path.touch() or path), [], "empty"),
    "absent": (lambda path, state: str(path), [], "no such file"),
    "name": (lambda path, state: "resnet18", [], "did you mean torchvision:resnet18?"),
    "nobody's": (lambda path, state: "tests.fastsc.nowhere:net", [], "ModuleNotFoundError"),
    "no library": (lambda path, state: "pretrained", [], "no library has weights"),
    "frozen head": (
        lambda path, state: save(path, network(9).state_dict()), ["--freeze", "fc"],
        "--freeze fc: fc is new",
    ),
    "freeze nothing": (
        lambda path, state: save(path, state), ["--freeze", "layer9"], "nothing like it",
    ),
    "freeze all": (lambda path, state: save(path, state), ["--freeze", "*"], "nothing is left"),
    "statistics": (lambda path, state: "", ["--bn", "frozen"], "name --init"),
    "freeze fresh": (lambda path, state: "", ["--freeze", "fc"], "random ones: name --init"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_way_is_one_line_and_writes_nothing(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, more, said = WRONG[name]
    ending = ".safetensors" if name == "lora" else ".pt"
    init = make(tmp_path / f"weights{ending}", network().state_dict())
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), *SMALL, *more]
    words += ["--init", init] * bool(init)
    assert said in mistake(capsys, [*words, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_another_network_than_the_one_that_was_named(
    image_folder: Path, tmp_path: Path, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), *SMALL]
    words += ["--init", str(begun), "--model", "resnet18", "--out", str(tmp_path / "run")]
    said = mistake(capsys, words)
    assert "its network has --model fastsc:resnet8w8, not --model resnet18" in said
    assert not (tmp_path / "run").exists()


def test_pretrained_without_a_network_is_one_line(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*args: Any, **options: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(libraries.torchvision.models, "get_model", refused)
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), "--init", "pretrained"]
    said = mistake(capsys, [*words, *TORCHVISION, "--out", str(tmp_path / "run")])
    assert "pretrained weights cannot be had (no route to host)" in said
    assert "--no-pretrained" not in said, "an option of another command"


# --- resume ---------------------------------------------------------------------------------------


def test_a_resume_does_without_the_source(image_folder: Path, tmp_path: Path, begun: Path) -> None:
    """Its checkpoint has the weights, its config.yaml what was known of the source."""
    shutil.copytree(begun, tmp_path / "source")
    more = ["--init", str(tmp_path / "source"), "--epochs", "2", "--max-steps", "2"]
    assert run(image_folder, tmp_path / "run", *more) == 0
    shutil.rmtree(tmp_path / "source")
    more[-1] = "3"
    assert run(image_folder, tmp_path / "run", *more, "--resume") == 0
    (header,), (resumed,) = (events(tmp_path / "run", kind) for kind in ("header", "resume"))
    assert resumed["mean"] == header["mean"] == [0.5, 0.4, 0.3]
    assert resumed["init_hash"] == header["init_hash"]


def test_a_resume_leaves_each_process_its_own_data(
    image_folder: Path, tmp_path: Path, begun: Path
) -> None:
    """Another machine may have the images in another place."""
    words = ["cifar100", "--data", str(image_folder), "--out", str(tmp_path), "--init", str(begun)]
    mine = parse([*words, "--workers", "2"])
    (tmp_path / "config.yaml").write_text(dump(parse(words).replace(data="/other", workers=8)))
    ranks, folder = Mock(single_process=True, is_main=False), RunFolder(tmp_path)
    main_ones = of_begun(mine, folder.config)
    ranks.broadcast.side_effect = [True, main_ones]
    ranks.all_or_none.return_value = nullcontext()
    found, source = _begun_from(mine, folder, True, ranks)
    assert source is None
    assert found == mine.replace(**main_ones)
    assert found.data.workers == 2
