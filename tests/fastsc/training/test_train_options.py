"""Options of the method and of training, from the command line to what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastsc.config.options import parse
from fastsc.datasets.folders import open_data
from fastsc.distributed.ranks import Ranks
from fastsc.models.build import build_model
from fastsc.models.representation import Represented
from fastsc.pipelines import PairBatch, UserError, build
from fastsc.run import checkpoint
from fastsc.train import main
from fastsc.training.state import Training
from fastsc.training.step import Step
from fastsc.training.validate import validate
from tests.fastsc.runs import events, same_weights, weights

pytestmark = pytest.mark.heavy

TINY = [
    "imagenet", "--pipeline", "memory", "--model", "fastsc:resnet8w4", "--resolution", "32",
    "--batch-size", "8", "--epochs", "2", "--precision", "fp32", "--log-every", "1", "--lr", "1",
]  # fmt: skip


PLAIN = ["--alpha", "0", "--ce-views", "clean"]
CONSTANT = ["--alpha", "0.7", "--alpha-warmup-epochs", "0"]


def run(data: Path, out: Path, *more: str) -> int:
    return main([*TINY, "--data", str(data), "--out", str(out), *more])


def training(data: Path, *more: str) -> Training:
    config = parse([*TINY, "--data", str(data), *more]).replace(precision="fp32")
    return Training(config, open_data(config.data), torch.device("cpu"), "fp32", Ranks())


def gradients(trained: Training, batch: PairBatch) -> list[Tensor]:
    """What one update's gradient is, read at the optimizer."""
    found: list[Tensor] = []
    step = trained.core
    take = step.optimizer.step

    def keep(*args: Any, **options: Any) -> Any:
        found.extend(p.grad.clone() for p in step.model.parameters() if p.grad is not None)
        return take(*args, **options)

    step.optimizer.step = keep  # type: ignore[method-assign]
    trained.train_step(batch, measured=False)
    return found


def cosine(f: Tensor, g: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(f, g)).mean()


@pytest.mark.parametrize("bn", ["joint", "split"])
@pytest.mark.parametrize("at", ["features", "layer2"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("views", ["clean", "both"])
def test_the_gradient_is_that_of_the_loss_written_out(
    image_folder: Path, bn: str, at: str, fraction: float, views: str
) -> None:
    words = ["--bn", bn, "--ds-at", at, "--paired-fraction", str(fraction), "--ce-views", views]
    it = training(image_folder, *words, "--label-smoothing", "0", *CONSTANT)
    try:
        batch = next(iter(it.loader))
        n, m = 8, round(8 * fraction)
        assert batch.perturbed is not None
        assert (len(batch.clean), len(batch.perturbed)) == (n, m)
        torch.manual_seed(0)
        net: Any = build_model("fastsc:resnet8w4", 4, "cifar", 32).net.train()

        def body(x: Tensor) -> tuple[Tensor, Tensor]:
            stage = net.layer2(net.layer1(net.relu(net.bn1(net.conv1(x)))))
            features = net.layer3(stage).mean((2, 3))
            return (features if at == "features" else stage.mean((2, 3))), net.fc(features)

        if bn == "split":
            (f, a), (g, b) = body(batch.clean), body(batch.perturbed)
        else:
            r, z = body(torch.cat([batch.clean, batch.perturbed]))
            f, g, a, b = r[:n], r[n:], z[:n], z[n:]
        target = batch.target
        if views == "clean":
            ce = functional.cross_entropy(a, target)
        else:  # the mean over all views that there are
            ce = functional.cross_entropy(torch.cat([a, b]), torch.cat([target, target[:m]]))
        (ce + 0.7 * cosine(f[:m], g)).backward()
        for found, p in zip(gradients(it, batch), net.parameters(), strict=True):
            torch.testing.assert_close(found, p.grad, rtol=1e-3, atol=1e-6)
    finally:
        it.close()


def test_pairs_of_a_fraction_are_the_first_rows_of_the_whole(image_folder: Path) -> None:
    options: dict[str, Any] = {"batch_size": 6, "resolution": 32}
    for pipeline in ("cpu", "memory"):
        whole = build(pipeline, image_folder / "train", **options)
        part = build(pipeline, image_folder / "train", **options, paired_fraction=0.4)
        for a, b in zip(whole, part, strict=True):
            assert torch.equal(a.clean, b.clean)
            assert a.perturbed is not None
            assert b.perturbed is not None
            assert torch.equal(a.perturbed[:2], b.perturbed)
        whole.close(), part.close()


def test_resolution_may_change_between_epochs(image_folder: Path) -> None:
    for pipeline in ("cpu", "memory"):
        loader = build(pipeline, image_folder / "train", batch_size=8, resolution=64)
        fresh = build(pipeline, image_folder / "train", batch_size=8, resolution=32)
        list(loader)
        loader.set_epoch(1), fresh.set_epoch(1)
        loader.set_resolution(32)
        for a, b in zip(loader, fresh, strict=True):
            assert torch.equal(a.clean, b.clean)
        loader.close(), fresh.close()


def test_progressive_resolution_reaches_the_model(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = Step.train_step

    def observed(self: Step, batch: PairBatch, **options: Any) -> Any:
        seen.append(batch.clean.shape[-1])
        return step(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", observed)
    plan = ["--resolution", "96", "--min-resolution", "32", "--resolution-ramp", "0", "2"]
    more = [*plan, "--epochs", "3", "--val-resolution", "64", "--val-every", "3"]
    assert run(image_folder, tmp_path / "a", *more) == 0
    assert seen == [32] * 4 + [64] * 4 + [96] * 4
    assert checkpoint.load_safetensors(tmp_path / "a/weights.safetensors")[1]["resolution"] == 64
    seen.clear()
    assert run(image_folder, tmp_path / "b", *more, "--max-steps", "6") == 0
    assert run(image_folder, tmp_path / "b", *more, "--resume") == 0
    assert seen == [32] * 4 + [64] * 4 + [96] * 4
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_ema_is_the_average_written_out_and_what_is_exported(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[dict[str, Tensor]] = []
    step = Step.train_step

    def observed(self: Step, batch: PairBatch, **options: Any) -> Any:
        result = step(self, batch, **options)
        history.append({k: v.double() for k, v in self.model.net.state_dict().items()})
        return result

    monkeypatch.setattr(Step, "train_step", observed)
    more = ["--ema", "0.6", "--val", "none"]
    assert run(image_folder, tmp_path / "a", *more, "--checkpoint-steps", "3") == 0
    mean = history[0]
    for k, state in enumerate(history[1:], start=1):
        decay = min(0.6, 1 - (1 + k) ** (-2 / 3))
        mean = {key: decay * mean[key] + (1 - decay) * state[key] for key in mean}
    exported = weights(tmp_path / "a")
    for key, value in exported.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), mean[key], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(exported[k].double(), history[-1][k]) for k in exported)
    assert run(image_folder, tmp_path / "b", *more, "--max-steps", "5") == 0
    assert run(image_folder, tmp_path / "b", *more, "--resume") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_accumulation_equals_the_whole_batch(image_folder: Path, tmp_path: Path) -> None:
    # LayerNorm, and DS of a kind that is a mean over images. At TINY's learning rate the last bits
    # of some CPUs grow to a percent in eight steps.
    model = ["--model", "timm:test_convnext", "--paired-fraction", "0.5", "--lr", "0.01"]
    model += ["--val", "none"]
    assert run(image_folder, tmp_path / "a", *model) == 0
    assert run(image_folder, tmp_path / "b", *model, "--accumulate", "4") == 0
    for a, b in zip(events(tmp_path / "a", "step"), events(tmp_path / "b", "step"), strict=True):
        for name in ("loss", "ce", "ds", "ds_relative", "between", "effective_rank", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4)


def test_stem_is_that_of_small_images(image_folder: Path) -> None:
    it = training(image_folder, "--model", "resnet18", "--stem", "cifar")
    assert it.core.model.net.conv1.weight.shape == (64, 3, 3, 3)  # type: ignore[union-attr]
    it.close()


def test_gradient_is_clipped_to_its_norm(image_folder: Path) -> None:
    free, clipped = training(image_folder), training(image_folder, "--clip-grad", "0.01")
    batch = next(iter(free.loader))
    a, b = gradients(free, batch), gradients(clipped, batch)
    norm = torch.cat([g.flatten() for g in a]).norm()
    assert norm > 0.01
    for g, h in zip(a, b, strict=True):
        torch.testing.assert_close(h, g * (0.01 / norm), rtol=1e-3, atol=1e-9)
    free.close(), clipped.close()


def test_alpha_warms_up_in_the_log_and_the_loss(image_folder: Path, tmp_path: Path) -> None:
    more = ["--alpha", "2", "--alpha-warmup-epochs", "1", "--val", "none"]
    assert run(image_folder, tmp_path / "run", *more) == 0
    alphas = [e["alpha"] for e in events(tmp_path / "run", "step")]
    assert alphas == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0])
    for e in events(tmp_path / "run", "step"):
        assert e["loss"] == pytest.approx(e["ce"] + e["alpha"] * e["ds"], rel=1e-5)


def test_flip_at_validation_adds_the_mirrored_logits(image_folder: Path) -> None:
    torch.manual_seed(0)
    model = Represented(build_model("fastsc:resnet8w4", 4, "cifar", 32), "features").eval()
    loader = build("memory", image_folder / "val", batch_size=5, resolution=32, train=False)
    flipped, plain = validate(model, loader, "l2", flip=True), validate(model, loader, "l2")
    assert flipped is not None
    assert plain is not None
    hits = 0
    with torch.no_grad():
        for clean, _, target, _ in loader:
            scores = model.net(clean) + model.net(clean.flip(-1))
            hits += int((scores.argmax(1) == target).sum())
    assert flipped.top1 == hits / 12
    assert (flipped.ds, flipped.ds_relative) == (plain.ds, plain.ds_relative)
    loader.close()


def test_collapse_is_warned_of(image_folder: Path, tmp_path: Path) -> None:
    # The paper's plain reading with a large weight: features shrink to a point.
    more = ["--ds", "l2", "--alpha", "300", "--epochs", "12", "--val", "none", "--lr", "3"]
    assert run(image_folder, tmp_path / "run", *more, "--warmup-epochs", "0") == 0
    warnings = [e["reason"] for e in events(tmp_path / "run", "warning")]
    assert any("collapse" in reason and "--alpha" in reason for reason in warnings)
    calm = ["--epochs", "12", "--val", "none"]
    assert run(image_folder, tmp_path / "calm", *calm) == 0
    assert not [e for e in events(tmp_path / "calm", "warning") if "collapse" in e["reason"]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--min-resolution", "64"], "--min-resolution 64 is above --resolution 32"),
        (["--resolution-ramp", "3", "5"], "add it"),
        (["--min-resolution", "16"], "needs --resolution-ramp"),
        (["--bn", "split", "--paired-fraction", "0.1", "--model", "resnet18"], "batch norm gets"),
        (
            ["--bn", "split", "--paired-fraction", "0.1", "--model", "resnet18", *PLAIN],
            "batch norm gets",
        ),
        (["--bn", "split", "--model", "timm:test_convnext"], "no batch norm"),
        (["--compile", "--compile-mode", "reduce-overhead", "--accumulate", "2"], "CUDA graphs"),
        (["--clip-grad", "-1"], "--clip-grad must be above 0"),
        (["--min-resolution", "16", "--resolution-ramp", "5", "3"], "earlier one first"),
        (["--paired-fraction", "0"], "--paired-fraction must be above 0"),
        (["--paired-fraction", "1.5"], "at most 1"),
        (["--accumulate", "3"], "multiple of --accumulate"),
        (["--accumulate", "2", "--paired-fraction", "0.4"], "3 pairs"),
        (["--accumulate", "4", "--paired-fraction", "0.75"], "take 1 (8 pairs)"),
        (["--ema", "1"], "--ema must be below 1"),
        (["--clip-grad", "0"], "--clip-grad must be above 0"),
        (["--ds-at", "layer9"], "layer"),
        (["--compile-mode", "max-autotune"], "--compile"),
        (["--alpha", "0", "--alpha-warmup-epochs", "1"], "--alpha is 0"),
        (["--val-every", "0"], "--val-every must be at least 1"),
        (["--blurpool"], "--blurpool"),
        (["--model", "fastsc:resnet9"], "resnet8w32"),
        (["--ds", "relative", "--accumulate", "8"], "at least 2"),
    ],
)
def test_mistakes(
    image_folder: Path,
    tmp_path: Path,
    more: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(image_folder, tmp_path / "run", *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [[], ["--epochs", "4", "--max-steps", "8"]])
def test_a_ramp_that_ends_behind_the_run_is_warned_of(
    image_folder: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["--min-resolution", "16", "--resolution-ramp", "1", "2", "--val", "none"]
    assert run(image_folder, tmp_path / "short", *plan, *more) == 0
    assert "it trains at 16 px at most, not at 32" in capsys.readouterr().out
    assert run(image_folder, tmp_path / "whole", *plan, "--epochs", "3") == 0
    assert "at most" not in capsys.readouterr().out


def test_accumulation_looks_at_both_views_in_parts(image_folder: Path) -> None:
    """Plain training: the figures of the log."""
    plain = [*PLAIN, "--model", "timm:test_convnext"]
    whole, parts = (
        training(image_folder, *plain),
        training(image_folder, *plain, "--accumulate", "4"),
    )
    rows = []
    forward = parts.core.model.forward

    def counted(x: Tensor, n_clean: int | None = None) -> Any:
        rows.append(len(x))
        return forward(x, n_clean)

    parts.core.model.forward = counted  # type: ignore[method-assign]
    batch = next(iter(whole.loader))
    measured = [it.train_step(batch, measured=True) for it in (whole, parts)]
    a, b = (m.read() for m in measured if m is not None)
    assert rows == [4] * 4 + [2] * 4
    for name in ("loss", "ds", "ds_relative", "between", "effective_rank", "grad_norm"):
        assert b[name] == pytest.approx(a[name], rel=1e-4), name
    whole.close(), parts.close()


def test_a_look_leaves_no_trace(image_folder: Path) -> None:
    it = training(image_folder, *PLAIN)
    batch = next(iter(it.loader))
    before = {key: value.clone() for key, value in it.core.model.state_dict().items()}
    generator = torch.get_rng_state()
    it.core.model.train()
    assert it.core._probe(batch) is not None
    after = it.core.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert torch.equal(generator, torch.get_rng_state())
    it.close()


def test_the_number_of_pairs_is_that_of_the_whole_batch(image_folder: Path) -> None:
    for rank in range(2):
        options: dict[str, Any] = {"rank": rank, "world_size": 2, "resolution": 32}
        loader = build(
            "memory", image_folder / "train", batch_size=16, paired_fraction=0.4, **options
        )
        batch = next(iter(loader))
        assert batch.perturbed is not None
        assert len(batch.perturbed) == 3  # 6 of 16; rounded for each rank they would be 2 × 3
        loader.close()
    with pytest.raises(UserError, match="is 5 pairs, which 2 ranks cannot share"):
        build("memory", image_folder / "train", batch_size=16, paired_fraction=0.3, **options)


def test_a_resume_takes_this_machines_kernel_for_the_update(
    image_folder: Path, tmp_path: Path
) -> None:
    """What a checkpoint's groups say of it is of the machine that wrote them."""
    begun = training(image_folder, "--no-fused-optimizer")
    state = begun.state_dict()
    assert [group["fused"] for group in state["optimizer"]["param_groups"]] == [False, False]
    resumed = training(image_folder)
    resumed.load_state_dict(state, tmp_path)
    assert [group["fused"] for group in resumed.core.optimizer.param_groups] == [True, True]
    for trained in (begun, resumed):
        trained.close()
