"""Pooling and DS in one pass: the same training, where the model ends in global average pooling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.config import TrainConfig
from fastsc.distributed.ranks import Ranks
from fastsc.models.build import build_model
from fastsc.models.pooling import ends_in_average_pooling
from fastsc.pipelines import PairBatch
from fastsc.training.alpha import Alpha
from fastsc.training.optimizer import lr_at
from fastsc.training.setup import prepare
from fastsc.training.step import Step
from tests.fastsc.training.test_train_options import events, run

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
N, SIDE = 6, 32


def make(pooling: str, **changes: Any) -> Step:
    base = {
        "model": "fastsc:resnet8w4", "stem": "cifar", "resolution": SIDE, "batch_size": N,
        "lr": 0.5, "warmup_epochs": 0.0, "precision": "fp32",
    }  # fmt: skip
    config = TrainConfig().replace(**{**base, "pooling": pooling, **changes})
    model = prepare(config, 5, CPU, config.run.precision, Ranks())  # type: ignore[arg-type]
    return Step(config, model, CPU, config.run.precision, Ranks())  # type: ignore[arg-type]


def train(step: Step, batch: PairBatch) -> tuple[float, dict[str, float]]:
    """A step of 100 in an epoch: its alpha and its figures."""
    optim, method = step.config.optim, step.config.method
    lr = lr_at(step.step, optim, 100)
    alpha = Alpha(method, 100, optim.epochs).alpha(step.step)
    measured = step.train_step(batch, lr=lr, alpha=alpha, measured=True)
    assert measured is not None
    return alpha, measured.read()


def batch(m: int = N, seed: int = 0) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(N, 3, SIDE, SIDE, generator=generator)
    perturbed = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    target = torch.randint(0, 5, (N,), generator=generator)
    views = (v.to(memory_format=torch.channels_last) for v in (clean, perturbed[:m]))
    return PairBatch(*views, target, torch.arange(N))


@pytest.mark.parametrize(
    ("m", "changes"),
    [
        (N, {"ds": "cosine"}),
        (N, {"ds": "l2", "alpha": 0.1, "precision": "bf16"}),
        (N, {"ds": "relative", "alpha": 1.0}),
        (N, {"ds": "relative", "alpha": 1.0, "detach_scale": True}),
        (N, {"stop_gradient": "clean"}),
        (N, {"stop_gradient": "perturbed", "bn": "split"}),
        (3, {"paired_fraction": 0.5}),
        (N, {"accumulate": 2}),
        (N, {"alpha": 0.0}),
        (N, {"alpha_warmup_epochs": 0.02}),
        (N, {"ce_views": "clean", "ema": 0.9}),
    ],
)
def test_fused_and_separate_train_alike(m: int, changes: dict[str, Any]) -> None:
    """The same figures and weights after three steps, but for the order of adding in the mean."""
    fused, separate = make("fused", **changes), make("separate", **changes)
    assert fused.model.pool is not None
    assert separate.model.pool is None
    low = changes.get("precision") == "bf16"
    for seed in range(3):
        (alpha, one), (_, other) = (train(step, batch(m, seed)) for step in (fused, separate))
        assert one.keys() == other.keys()
        for name in one:
            expected = pytest.approx(other[name], rel=2e-2 if low else 1e-4, abs=1e-6)
            assert one[name] == expected, name
        assert one["loss"] == pytest.approx(one["ce"] + alpha * one["ds"], rel=1e-5)
    if not low:
        pairs = zip(fused.model.state_dict().items(), separate.model.state_dict().values())
        for (name, a), b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("m", "changes"),
    [
        (N, {"ds": "cosine", "accumulate": 2}),
        (N, {"ds": "relative", "alpha": 1.0, "precision": "bf16"}),
        (3, {"ds": "l2", "alpha": 0.1, "paired_fraction": 0.5, "stop_gradient": "clean"}),
    ],
)
def test_the_operators_of_a_gpu_train_alike(m: int, changes: dict[str, Any]) -> None:
    """Triton's kernels in the trainer's step, interpreted."""
    pytest.importorskip("triton")
    from fastsc.kernels import distance_ops, distance_triton, pooling_triton
    from tests.kernels.triton_tools import interpreted

    fused, plain = make("fused", **changes), make("fused", **changes)
    assert fused.model.pool is not None
    fused.model.pool.impl = "triton"
    low = changes.get("precision") == "bf16"
    with interpreted(distance_triton, distance_ops, pooling_triton):
        _, one = train(fused, batch(m))
    _, other = train(plain, batch(m))
    for name in one:
        expected = pytest.approx(other[name], rel=2e-2 if low else 1e-4, abs=1e-6)
        assert one[name] == expected, name


def test_validation_and_copies_pool_as_ever() -> None:
    """Outside a paired training step the model's own pooling runs, and a copy is independent."""
    step, plain = make("fused"), make("separate")
    x = batch().clean
    outputs = step.model.eval()(x)
    for a, b in zip(outputs[:3], plain.model.eval()(x)[:3], strict=True):
        assert torch.equal(a, b)
    assert outputs.ds is None
    step.model.train()
    assert step.model(x).ds is None, "views of one kind"
    assert step.model(torch.cat([x, x]), N).ds is not None
    with torch.no_grad():
        logits = step.model.eval()(x).logits
        assert torch.equal(step.model.net(x), logits), "the bare net, behind a fused step"
    step.model.train()
    twin = copy.deepcopy(step.model)
    assert twin.pool is not step.model.pool
    assert twin.model.pool is twin.pool
    assert twin(torch.cat([x, x]), N).ds is not None


def test_ds_is_zero_for_equal_views() -> None:
    step = make("fused")
    x = batch().clean[:3]
    *_, ds = step.model.eval().train()(torch.cat([x, x]), 3)
    assert ds.item() == 0.0


@pytest.mark.parametrize(
    ("name", "ends_so"),
    [
        ("resnet18", True),
        pytest.param("resnext50_32x4d", True, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", True, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", True, marks=pytest.mark.slow),
        ("googlenet", True),
        ("timm:resnet10t", True),
        pytest.param("timm:regnety_002", True, marks=pytest.mark.slow),
        ("timm:densenet121", True),
        ("fastsc:resnet8w4", True),
        ("densenet121", False),  # a functional ReLU between map and pooling
        ("mobilenet_v3_small", False),  # a linear layer after pooling
        pytest.param("convnext_tiny", False, marks=pytest.mark.slow),  # a norm after pooling
        ("timm:vit_tiny_patch16_224", False),  # tokens
        pytest.param("vgg11", False, marks=pytest.mark.slow),
        ("timm:legacy_seresnet18", True),  # features are those before F.dropout
        ("timm:repvit_m0_9", False),  # a batch norm after pooling, at first nearly nothing
        # Features are before dropout and flattening, too.
        pytest.param("inception_v3", True, marks=pytest.mark.slow),
    ],
)
def test_which_models_end_in_average_pooling(name: str, ends_so: bool) -> None:
    side = {"timm:vit_tiny_patch16_224": 224, "inception_v3": 139}.get(name, 64)
    model = build_model(name, 7, "imagenet", side).train()
    before = torch.get_rng_state()
    assert ends_in_average_pooling(model, side) is ends_so
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_the_log_says_which(image_folder: Path, tmp_path: Path) -> None:
    for pooling, said in (("auto", "separate"), ("fused", "fused")):
        out = tmp_path / pooling
        assert run(image_folder, out, "--pooling", pooling, "--epochs", "1") == 0
        assert events(out, "header")[0]["pooling"] == said
        more = ["--resume", "--pooling", "separate", "--epochs", "2"]
        assert run(image_folder, out, *more) == 0, "a resumed run may change it"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--alpha", "0", "--ce-views", "clean"], "trains without DS"),
        pytest.param(["--ds-at", "logits"], "DS is taken at logits", marks=pytest.mark.slow),
        (["--ds", "js", "--ds-at", "logits"], "DS is taken at logits"),
        (["--model", "mobilenet_v3_small"], "does not end in global average pooling"),
    ],
)
def test_asked_for_where_it_cannot_be_had(
    image_folder: Path,
    tmp_path: Path,
    more: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "mobilenet_v3_small" in more:
        more = [*more, "--stem", "imagenet", "--resolution", "64"]
    assert run(image_folder, tmp_path / "run", "--pooling", "fused", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()
    assert run(image_folder, tmp_path / "auto", *more, "--max-steps", "1") == 0
