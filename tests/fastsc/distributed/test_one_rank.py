"""One rank that behaves as one of many: a process group is up, and everything goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastsc.config import TrainConfig
from fastsc.distributed.ranks import Ranks
from fastsc.models.norms import ViewBatchNorm2d, convert
from fastsc.models.views import Views
from fastsc.training import setup
from tests.fastsc.models.test_noise_runs import EQUAL
from tests.fastsc.runs import events, same_weights
from tests.fastsc.training.test_train_options import run

CPU = torch.device("cpu")


@pytest.fixture
def one_of_many(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setattr(Ranks, "single_process", False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield Ranks()
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def alone(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(image_folder, out, *MORE) == 0
    return out


MORE = ["--ds", "relative", "--alpha", "0.5", "--ema", "0.9", "--accumulate", "2"]


@pytest.mark.heavy
def test_it_trains_and_resumes_as_a_process_alone(
    image_folder: Path, tmp_path: Path, alone: Path, one_of_many: Ranks
) -> None:
    """Set-up, DDP, gathered features, averaged buffers, checkpoints of every rank's own."""
    out = tmp_path / "run"
    assert run(image_folder, out, *MORE, "--max-steps", "6") == 0
    assert run(image_folder, out, *MORE, "--resume") == 0
    assert [event["step"] for event in events(out, "resume")] == [6]
    assert same_weights(alone, out)


@pytest.mark.heavy
def test_equal_views_draw_alike(image_folder: Path, tmp_path: Path, one_of_many: Ranks) -> None:
    assert run(image_folder, tmp_path / "run", *EQUAL) == 0
    assert [step["ds"] for step in events(tmp_path / "run", "step")] == pytest.approx(
        [0, 0], abs=1e-6
    )


@pytest.mark.parametrize("bn", ["joint", "split"])
def test_synchronized_batch_norm(
    image_folder: Path, tmp_path: Path, one_of_many: Ranks, bn: str
) -> None:
    assert run(image_folder, tmp_path / "run", "--bn", bn, "--sync-bn", "--max-steps", "2") == 0


def test_split_statistics_of_all_ranks_take_one_collective_each_way(
    monkeypatch: pytest.MonkeyPatch, one_of_many: Ranks
) -> None:
    calls = list[str]()
    for name in ("all_gather", "all_reduce"):
        original = getattr(dist, name)
        counted = lambda *args, f=original, n=name: (calls.append(n), f(*args))[1]  # noqa: E731
        monkeypatch.setattr(dist, name, counted)
    views = Views(2, 4)
    norm = ViewBatchNorm2d.of(nn.BatchNorm2d(3), views, sync=True)
    with one_of_many.connected(CPU):
        norm(torch.randn(4, 3, 5, 5).requires_grad_()).square().sum().backward()
    assert calls == ["all_gather", "all_reduce"]


@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
def test_gradients_keep_their_digits_far_from_zero(one_of_many: Ranks, mean: float) -> None:
    """Against float64, beside what torch's own batch norm loses of them in float32."""
    generator = torch.Generator().manual_seed(0)
    x, back = torch.randn(2, 16, 4, 7, 7, dtype=torch.float64, generator=generator)
    x = (x + mean).float().double()  # the same input for all

    def gradients(norm: nn.BatchNorm2d, dtype: torch.dtype) -> list[torch.Tensor]:
        view = x.to(dtype, copy=True).requires_grad_()
        norm.to(dtype)(view).backward(back.to(dtype))
        assert norm.weight.grad is not None
        assert view.grad is not None
        return [norm.weight.grad.double(), view.grad.double()]

    exact = gradients(nn.BatchNorm2d(4), torch.float64)
    theirs = gradients(nn.BatchNorm2d(4), torch.float32)
    with one_of_many.connected(CPU):
        own = ViewBatchNorm2d.of(nn.BatchNorm2d(4), Views(), sync=True)
        ours = gradients(own, torch.float32)
    for our, their, whole in zip(ours, theirs, exact, strict=True):
        assert (our - whole).norm() <= 2 * (their - whole).norm() + 1e-6 * whole.norm()


def test_synchronized_batch_norm_is_built_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, one_of_many: Ranks
) -> None:
    """torch's own, which takes no CPU tensor in training mode: nothing runs through it here."""

    def as_on_a_gpu(*args: Any, **options: Any) -> None:
        convert(*args, **{**options, "on_gpu": True})

    monkeypatch.setattr(setup, "convert", as_on_a_gpu)
    config = TrainConfig().replace(
        model="fastsc:resnet8w4", resolution=32, sync_bn=True, pooling="fused"
    )
    with one_of_many.connected(CPU):
        model = setup.build(config, 5, CPU, one_of_many)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
        with pytest.raises(ValueError, match="to be on GPU"):
            model.train()(torch.zeros(2, 3, 32, 32))
        model.eval()(torch.zeros(2, 3, 32, 32))


def test_converted_norms_keep_their_hooks() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    seen = list[torch.Size]()
    net[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    before = {name: value.data_ptr() for name, value in net.state_dict().items()}
    convert(net, "x", Views(), split=False, sync=True, on_gpu=True)
    net(torch.zeros(2, 3, 8, 8))
    assert seen == [(2, 4, 6, 6)]
    assert {name: value.data_ptr() for name, value in net.state_dict().items()} == before
