"""Checkpoints in every shape give a network the weights that torch's own loading gives it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, load_source
from fastsc.evaluation.models.state_dicts import WeightsFile, read_weights
from fastsc.run.checkpoint import load_model_state


def network(n: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, n))


def trained(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = network()
    net.train()(torch.randn(8, 3, 4, 4))
    return net.state_dict()


RAW, AVERAGE = trained(1), trained(2)


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def read(contents: object, path: Path, key: str | None = None, net: Any = None) -> Any:
    """What of a file a network gets, after it was loaded into it; and the notes."""
    torch.save(contents, path / "w.pth")
    net = network() if net is None else net
    state, notes = read_weights(WeightsFile(path / "w.pth", key), net)
    load_model_state(net, state, "w.pth")
    return net.state_dict(), notes


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


PREFIXES = [
    "", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.model.", "anything.at.all.",
    "module.backbone.", "_orig_mod.module.", "model.net._orig_mod.", "0.",
]  # fmt: skip
NESTED = [
    "state_dict", "model_state_dict", "model", "model_ema", "ema", "params", "params_ema",
    "state_dict_ema", "net", "teacher", "a name of one's own",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_of_all_names(prefix: str, tmp_path: Path) -> None:
    found, notes = read(under(prefix, RAW), tmp_path)
    assert same(found, RAW)
    assert notes == ()


@pytest.mark.parametrize("name", NESTED)
def test_any_place_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(network().parameters()).state_dict()
    rest = {"epoch": 3, "optimizer": optimizer, "best": torch.tensor(0.5), "lr": [0.1]}
    for contents in (RAW, {"state_dict": under("module.", RAW)}, {"model": {"x": RAW}}):
        found, notes = read({**rest, name: contents}, tmp_path)
        assert same(found, RAW)
        assert notes == ()


def test_a_compiled_part(tmp_path: Path) -> None:
    state = {key.replace("1.", "1._orig_mod.", 1): value for key, value in RAW.items()}
    assert same(read(state, tmp_path)[0], RAW)
    wrapped = torch.compile(network(), backend="eager")
    assert same(under("_orig_mod.", RAW), read(RAW, tmp_path, net=wrapped)[0])


def test_what_is_no_weight_is_left_out_and_named(tmp_path: Path) -> None:
    one = torch.ones(1)
    surplus = {
        "total_ops": one, "0.total_params": one, "3.num_batches_tracked": one[0],
        "n_averaged": one[0],
    }  # fmt: skip
    found, (note,) = read({**RAW, **surplus}, tmp_path)
    assert same(found, RAW)
    assert "left out, being no weights: total_ops, 0.total_params" in note
    assert "and 1 more" in note
    lightning = {"criterion.weight": torch.ones(3), "val_acc.tp": torch.ones(3)}
    for outer in ("", "module."):
        contents = under(outer, {**under("model.", RAW), **lightning})
        found, (note,) = read({"state_dict": contents}, tmp_path)
        assert same(found, RAW)
        assert f"{outer}criterion.weight, {outer}val_acc.tp" in note


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({**RAW, "extra.weight": torch.ones(3)}, "1 are unknown here, extra.weight first"),
        ({k: v for k, v in RAW.items() if k != "3.bias"}, "1 tensors are missing there, 3.bias"),
        ({k: v for k, v in RAW.items() if "running_var" not in k}, "missing there, 1.running_var"),
        ({**RAW, "3.loss.weight": torch.ones(3)}, "3.loss.weight first"),
        ({**RAW, "0.total_ops": torch.ones(3)}, "0.total_ops first"),
    ],
)
def test_other_differences_are_refused(changed: Any, words: str, tmp_path: Path) -> None:
    for prefix in ("", "module.model."):
        with pytest.raises(UserError, match="holds another model") as caught:
            read(under(prefix, changed), tmp_path)
        assert words in str(caught.value)


def test_batch_norms_counters_may_be_missing_as_in_torch(tmp_path: Path) -> None:
    old = {key: value for key, value in RAW.items() if "num_batches_tracked" not in key}
    oracle = network()
    oracle.load_state_dict(old)
    assert same(read(old, tmp_path)[0], oracle.state_dict())


def averaged_model() -> dict[str, Any]:
    net = network()
    net.load_state_dict(AVERAGE)
    return AveragedModel(net).state_dict()


BOTH: dict[str, tuple[object, str]] = {  # with the key of the raw weights
    "timm": ({"state_dict": RAW, "state_dict_ema": AVERAGE}, "state_dict"),
    "deit": ({"model": RAW, "model_ema": AVERAGE, "epoch": 3}, "model"),
    "basicsr": ({"params": RAW, "params_ema": AVERAGE}, "params"),
    "dino": (
        {"student": under("module.", RAW), "teacher": under("module.", AVERAGE)},
        "student.module",
    ),
    "lightning": (
        {"state_dict": {**under("net.", RAW), **under("net_ema.", AVERAGE)}},
        "state_dict.net",
    ),
    "beside the raw names": ({**RAW, **under("ema.module.", AVERAGE)}, ""),
    "ema-pytorch": (
        {"ema": {**under("online_model.", RAW), **under("ema_model.", AVERAGE),
                 "initted": torch.tensor(True), "step": torch.tensor(3)}},
        "ema.online_model",
    ),
    "torch": ({"model": RAW, "swa_model": averaged_model()}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOTH)
def test_averaged_weights_come_before_raw_ones(case: str, tmp_path: Path) -> None:
    contents, key = BOTH[case]
    found, notes = read(contents, tmp_path)
    assert same(found, AVERAGE)
    assert "more than once" in notes[0]
    assert "an average over training, was taken" in notes[0]
    if key:
        found, notes = read(contents, tmp_path, key)
        assert same(found, RAW)
        assert not any("more than once" in note for note in notes)


def test_another_model_in_the_file_is_none_of_the_choices(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 3))
    found, notes = read({"student": RAW, "teacher": wide.state_dict()}, tmp_path)
    assert same(found, RAW)
    assert notes == ()


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    contents = {"state_dict": under("net.", RAW), "odd.name": RAW}
    assert same(read(contents, tmp_path, "odd.name")[0], RAW)
    for key in ("ema", "state_dict.model", "state_dict.net.9"):
        with pytest.raises(UserError, match=r"no --weights-key \S+ in it; there are "):
            read(contents, tmp_path, key)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (torch.optim.SGD(network().parameters()).state_dict(), "the state of an optimizer alone"),
        ({"optimizer": torch.optim.Adam(network().parameters()).state_dict()}, "an optimizer alo"),
        ({"epoch": 3, "lr": 0.1}, "no tensors with names in it, only epoch, lr"),
        ([1, 2], "holds list, not a state dict"),
        ({"model": nn.Linear(2, 2), "epoch": 1}, "a whole pickled model (torch.nn.modules.linear"),
    ],
)
def test_checkpoints_without_weights(contents: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(contents, tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Counted(nn.Module):
    """With extra state, as torch.nn.Module.get_extra_state gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(2, 2), {"n": 0}

    def get_extra_state(self) -> dict[str, int]:
        return self.seen

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state


def test_extra_state_is_loaded_too(tmp_path: Path) -> None:
    net, other = Counted(), Counted()
    other.seen = {"n": 5}
    state, _ = read(under("model.", other.state_dict()), tmp_path, net=net)
    assert net.seen == {"n": 5}
    assert torch.equal(state["fc.weight"], other.fc.weight)
    bare = copy.copy(other.state_dict())
    del bare["_extra_state"]
    with pytest.raises(UserError, match="missing there, _extra_state first"):
        read(bare, tmp_path, net=net)


def test_the_part_of_a_file_is_chosen_by_option_and_said(tmp_path: Path) -> None:
    model, path = "torchvision:mobilenet_v3_small", tmp_path / "w.pth"
    nets = [torchvision.models.get_model("mobilenet_v3_small", num_classes=4) for _ in range(2)]
    raw, average = (net.eval() for net in nets)
    torch.save({"model": raw.state_dict(), "model_ema": average.state_dict()}, path)
    x = torch.rand(2, 3, 32, 32)
    for key, net in ((None, average), ("model", raw), ("model_ema", average)):
        source = load_source(model, ModelOptions(weights=path, weights_key=key, resolution=32))
        with torch.no_grad():
            assert torch.equal(source.classifier(x)[1], net(x))
        said = [note for note in source.notes if "'model_ema', an average over training" in note]
        assert len(said) == (key is None)
    with pytest.raises(UserError, match="--weights-key model: is a part of a --weights FILE"):
        load_source(model, ModelOptions(weights_key="model", pretrained=False))
