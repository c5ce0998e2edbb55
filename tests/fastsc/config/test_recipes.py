"""The shipped recipes against ffcv-imagenet's rules, computed a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.config.checks import check
from fastsc.config.recipes import load_recipe, recipe_names
from fastsc.errors import UserError
from fastsc.models.build import build_model
from fastsc.training.optimizer import lr_at, param_groups, peak_lr
from fastsc.training.schedules import resolution_at

# Epochs, then the ramp's first and last epoch: ffcv-imagenet's rn18_configs and rn50_configs.
PLANS = [(16, 11, 13), (24, 17, 20), (32, 23, 27), (40, 29, 34), (56, 41, 48), (88, 65, 76)]
FFCV = {18: (0.5, 1024, 5e-5), 50: (1.7, 8 * 512, 1e-4)}  # rate, global batch, weight decay
VARIANTS = [(d, e, a, b, p) for d in FFCV for e, a, b in PLANS for p in ("", "-plain")]


@pytest.mark.parametrize(("depth", "epochs", "first", "last", "plain"), VARIANTS)
def test_ffcv_recipe(depth: int, epochs: int, first: int, last: int, plain: str) -> None:
    config = load_recipe(f"rn{depth}-{epochs}{plain}")
    check(config.replace(data="d"))
    rate, batch, decay = FFCV[depth]
    data, optim, method = config.data, config.optim, config.method
    assert config.model.model == f"resnet{depth}"
    assert config.model.blurpool
    assert (optim.epochs, optim.batch_size, optim.weight_decay) == (epochs, batch, decay)
    assert (optim.momentum, optim.nesterov, optim.label_smoothing) == (0.9, False, 0.1)
    assert peak_lr(optim) == pytest.approx(rate)
    assert (data.val_resolution, data.val_crop, data.val_flip) == (256, 224 / 256, True)
    assert (method.alpha == 0 and method.ce_views == "clean") == bool(plain)

    # Rate: from next to nothing to the peak at epoch 2, then straight to 0 at the end.
    per_epoch = 1_281_167 // batch
    steps = np.arange(epochs * per_epoch)
    line = np.interp(steps / per_epoch, [0, 2, epochs], [1e-4 * rate, rate, 0])
    ours = np.array([lr_at(int(step), optim, per_epoch) for step in steps])
    assert np.abs(ours - line).max() <= 1.01 * rate / (2 * per_epoch), (
        "one step of the rise at most"
    )

    for epoch in range(epochs):
        side = 160 if epoch <= first else 192 if epoch >= last else None
        if side is None:
            exact = np.interp([epoch], [first, last], [160, 192])[0]
            side = int(np.round(exact / 32)) * 32
        assert resolution_at(epoch, data) == side


def test_norms_and_biases_of_a_recipe_do_not_decay() -> None:
    config = load_recipe("rn18-16")
    torch.manual_seed(0)
    net = build_model("resnet18", 10, "imagenet", 64, blurpool=config.model.blurpool).net
    kinds = {
        id(p): type(module) for module in net.modules() for p in module.parameters(recurse=False)
    }
    biases = {id(m.bias) for m in net.modules() if isinstance(m, nn.Linear)}
    groups = param_groups(net, config.optim.weight_decay)
    seen = 0
    for group in groups:
        for p in group["params"]:
            free = kinds[id(p)] is nn.BatchNorm2d or id(p) in biases
            assert group["weight_decay"] == (0 if free else 5e-5)
            seen += 1
    assert seen == len(list(net.parameters()))


def test_imagenet_is_the_usual_recipe() -> None:
    config = load_recipe("imagenet")
    optim = config.optim
    assert (optim.lr, optim.batch_size, optim.epochs) == (0.1, 256, 90)
    assert resolution_at(0, config.data) == resolution_at(89, config.data) == 224
    for step in (0, 2500, 24_999):  # five epochs of 5,000 steps
        assert lr_at(step, optim, 5000) == pytest.approx(0.1 * (step + 1) / 25_000)
    for step in (25_000, 100_000, 449_999):
        part = (step - 25_000) / 425_000
        assert lr_at(step, optim, 5000) == pytest.approx(0.05 * (1 + np.cos(np.pi * part)))
    plain = load_recipe("imagenet-plain").flat() | {"recipe": "imagenet"}
    changed = {key for key, value in config.flat().items() if plain[key] != value}
    assert changed == {"alpha", "ce_views"}


def test_every_recipe_checks_and_describes_itself() -> None:
    names = recipe_names()
    assert {"imagenet", "cifar100", "rn18-16", "rn50-88"} <= set(names)
    for name in names:
        init = "x" if name == "repair" else None  # of which there is no default, as of --data
        check(load_recipe(name).replace(data="d", init=init))
        assert load_recipe(name).recipe == name


def test_a_recipe_may_begin_from_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: rn50-88\nlr: 0.2\n")
    config = load_recipe(str(path))
    expected = load_recipe("rn50-88").replace(lr=0.2, recipe="mine")
    assert config == expected
    # An alpha of the base's is its kind's, as on the command line.
    path.write_text("base: colormnist\nds: sq\n")
    assert load_recipe(str(path)).method.alpha == 16
    path.write_text("base: rn50-89\n")
    with pytest.raises(UserError, match="did you mean rn50-8"):
        load_recipe(str(path))
