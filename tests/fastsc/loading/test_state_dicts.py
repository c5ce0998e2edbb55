"""Checkpoints in every shape give a network the weights that torch's own loading gives it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, load_source
from fastsc.loading.state_dicts import WeightsFile, read_weights
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
    assert "left out, being no weights of this model: total_ops, 0.total_params" in note
    assert "and 1 more" in note
    outside = {
        "criterion.weight": torch.ones(3), "val_acc.tp": torch.ones(3), "mean": torch.ones(3),
        "projector.0.weight": torch.ones(4, 4),
    }  # fmt: skip
    for outer in ("", "module."):
        contents = under(outer, {**under("model.", RAW), **outside})
        found, (note,) = read({"state_dict": contents}, tmp_path)
        assert same(found, RAW)
        assert f"{outer}criterion.weight, {outer}val_acc.tp, {outer}mean and 1 more" in note


def test_names_outside_of_a_network_that_is_not_whole_are_refused(tmp_path: Path) -> None:
    part = {key: value for key, value in RAW.items() if not key.startswith("3.")}
    with pytest.raises(UserError, match=r"2 tensors are missing there.*1 are unknown here, head"):
        read({**under("net.", part), "head.weight": torch.ones(3)}, tmp_path)


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
    assert notes == ("w.pth: averages without all of the parameters were not taken: 'teacher'",)
    assert read({"model": RAW, "other": wide.state_dict()}, tmp_path)[1] == ()


MOMENTS: list[dict[str, Any]] = [
    {"optimizer": {"exp_avg": under("module.", AVERAGE), "exp_avg_sq": AVERAGE}},
    {"optim_state": {"exp_avg": AVERAGE}},
    {"optimizer_states": [{"momentum_buffer": AVERAGE}]},
    {"avg_grad": AVERAGE},
    {"avg_sq": AVERAGE},
    {"grads": AVERAGE},
]


@pytest.mark.parametrize("moments", MOMENTS)
def test_an_optimizers_moments_are_no_weights(moments: dict[str, Any], tmp_path: Path) -> None:
    for contents in ({**moments, "last": RAW}, {"state_dict": under("model.", RAW), **moments}):
        found, notes = read(contents, tmp_path)
        assert same(found, RAW)
        assert notes == ()
    with pytest.raises(UserError, match="an optimizer alone"):
        read({k: v for k, v in moments.items() if isinstance(v, dict)} or {"optim": {}}, tmp_path)


def test_moments_under_a_prefix_are_no_weights(tmp_path: Path) -> None:
    contents = {**under("optimizer.exp_avg.", AVERAGE), **under("model.", RAW)}
    found, (note,) = read(contents, tmp_path)
    assert same(found, RAW)
    assert "left out, being no weights of this model: optimizer.exp_avg.0.weight" in note


@pytest.mark.parametrize(
    "name", ["ema", "EMA", "modelEMA", "emamodel", "model_ema", "polyak", "Teacher", "swa_model"]
)
def test_names_of_averages(name: str, tmp_path: Path) -> None:
    assert same(read({"model": RAW, name: AVERAGE}, tmp_path)[0], AVERAGE)
    assert same(read({**RAW, **under(f"{name}.", AVERAGE)}, tmp_path)[0], AVERAGE)


def parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: nn.Parameter(state[name]) for name, _ in network().named_parameters()}


PARAMETERS_ALONE = [
    {"model": RAW, "ema": parameters(AVERAGE)},
    {"model_ema": under("module.", parameters(AVERAGE)), "model": RAW},
    {"state_dict": {**under("net.", RAW), **under("net_ema.", parameters(AVERAGE))}},
    {**RAW, **under("ema.", parameters(AVERAGE))},
]


@pytest.mark.parametrize("contents", PARAMETERS_ALONE)
def test_an_average_of_parameters_alone_gets_the_raw_buffers(
    contents: dict[str, Any], tmp_path: Path
) -> None:
    oracle = network()
    oracle.load_state_dict(RAW)
    oracle.load_state_dict(parameters(AVERAGE), strict=False)
    found, (note,) = read(contents, tmp_path)
    assert same(found, oracle.state_dict())
    assert "an average over training, was taken, with what it lacks of " in note
    assert "1.running_mean, 1.running_var, 1.num_batches_tracked" in note


UNTAKEN: list[tuple[dict[str, Any], str]] = [
    ({"model": RAW, "ema": {"shadow_params": list(parameters(AVERAGE).values())}}, "'ema'"),
    ({"model": RAW, "ema": network()}, "'ema'"),
    ({"model": RAW, "ema": {"model": {"0.weight": AVERAGE["0.weight"]}}}, "'ema'"),
    (
        {"state_dict": {**under("model.", RAW), "model_ema.0weight": AVERAGE["0.weight"]}},
        "'state_dict.model_ema'",
    ),
]


@pytest.mark.parametrize(("contents", "title"), UNTAKEN)
def test_an_average_that_is_not_taken_is_named(
    contents: dict[str, Any], title: str, tmp_path: Path
) -> None:
    found, notes = read(contents, tmp_path)
    assert same(found, RAW)
    assert notes[-1].endswith(f"averages without all of the parameters were not taken: {title}")


def test_other_things_that_are_averages(tmp_path: Path) -> None:
    meters = {"avg_loss": torch.tensor(0.5), "ema": {"decay": torch.tensor(0.9)}, "swa": [1, 2]}
    assert read({"model": RAW, **meters}, tmp_path)[1] == ()


@pytest.mark.parametrize("outer", ["", "module.", "model.module."])
def test_a_part_under_data_parallel(outer: str, tmp_path: Path) -> None:
    def alexnet(wrap: Any) -> nn.Module:
        net = nn.Sequential()
        net.add_module("features", wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
        net.add_module("classifier", nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
        return net

    wrapped, net = alexnet(nn.DataParallel), alexnet(lambda x: x)
    state = wrapped.state_dict()
    assert "features.module.0.weight" in state
    expected = {key.replace("module.", ""): value for key, value in state.items()}
    assert same(read(under(outer, state), tmp_path, net=net)[0], expected)
    assert same(read(state, tmp_path, net=alexnet(nn.DataParallel))[0], state)


def test_lists_and_deep_nesting(tmp_path: Path) -> None:
    deep: object = RAW
    for name in "abcdef":
        deep = {name: deep}
    for contents in ([RAW], (RAW, 5), {"models": [RAW]}, [{"state_dict": RAW}], deep):
        assert same(read(contents, tmp_path)[0], RAW)
    for key, state in (("models.0", RAW), ("models.1", AVERAGE)):
        found, notes = read({"models": [RAW, AVERAGE]}, tmp_path, key)
        assert same(found, state)
        assert notes == ()
    assert same(read([RAW, AVERAGE], tmp_path, "1")[0], AVERAGE)


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    contents = {"state_dict": under("net.", RAW), "odd.name": RAW}
    assert same(read(contents, tmp_path, "odd.name")[0], RAW)
    for key in ("ema", "state_dict.model", "state_dict.net.9"):
        with pytest.raises(UserError, match=r"no --weights-key \S+ in it; there are "):
            read(contents, tmp_path, key)
    with pytest.raises(UserError, match=r"--weights-key 3.bias: a single tensor"):
        read(RAW, tmp_path, "3.bias")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (torch.optim.SGD(network().parameters()).state_dict(), "the state of an optimizer alone"),
        ({"optimizer": torch.optim.Adam(network().parameters()).state_dict()}, "an optimizer alo"),
        ({"epoch": 3, "lr": 0.1}, "no tensors with names in it, only epoch, lr"),
        ([1, 2], "holds list, not a state dict"),
        ({}, "holds an empty dict"),
        ({k: v.numpy() for k, v in RAW.items()}, "holds NumPy arrays, 0.weight first"),
        ({"best": np.ones(3), "model": nn.Linear(2, 2)}, "a whole pickled model"),
        ([nn.Linear(2, 2)], "a whole pickled model"),
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
