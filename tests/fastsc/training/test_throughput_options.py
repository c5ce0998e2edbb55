"""The options that are there for speed: each changes what it says, and nothing that is learned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.config.options import parse
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import PairBatch, UserError, build
from fastsc.training import loaders as run_data
from fastsc.training.step import both_views
from tests.fastsc.runs import events, run, same_weights
from tests.fastsc.training.test_train_options import PLAIN, training

MORE = [
    "--val", "none", "--model", "fastsc:resnet8w4", "--alpha", "3", "--alpha-warmup-epochs", "0",
    "--epochs", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def default(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("default") / "run"
    assert run(image_folder, out, *MORE) == 0
    return out


@pytest.mark.parametrize(
    "option", ["--no-channels-last", "--no-fused-optimizer", "--no-prefetch", "--decode cpu"]
)
def test_the_same_is_learned(
    image_folder: Path, tmp_path: Path, default: Path, option: str
) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, *MORE, *option.split()) == 0
    if option in ("--no-prefetch", "--decode cpu"):  # of a GPU
        assert same_weights(default, out)
    # Batch norm over few images turns rounding into differences, step by step.
    for one, other in zip(events(default, "step"), events(out, "step"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    (header,) = events(out, "header")
    name = option.removeprefix("--").removeprefix("no-").split()[0].replace("-", "_")
    assert header[name] == ("cpu" if "cpu" in option else False)
    # And a run may change it in its midst.
    assert run(image_folder, out, *MORE, "--resume", "--epochs", "2", "--schedule", "cosine") == 0


def test_memory_format_of_weights_and_views(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more, layout in (([], torch.channels_last), (["--no-channels-last"], None)):
        trained = training(image_folder, *more)
        wanted = layout or torch.contiguous_format
        seen: list[torch.Tensor] = []
        trained.core.model.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        batch = next(iter(trained.loader))
        trained.train_step(batch, measured=False)
        assert (seen[-1].data_ptr() == batch.clean.data_ptr()) == (not more), "copied"
        weight = trained.core.model.net.conv1.weight  # type: ignore[union-attr]
        assert weight.is_contiguous(memory_format=wanted)  # type: ignore[union-attr, operator]
        assert seen[-1].is_contiguous(memory_format=wanted)
        assert trained.core.optimizer.param_groups[0]["fused"]
        trained.close()
    trained = training(image_folder, "--no-fused-optimizer")
    assert not trained.core.optimizer.param_groups[0]["fused"]
    trained.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pipeline", "cpu", "--decode", "gpu"], "--decode gpu belongs to --pipeline dali"),
        (["--pipeline", "dali", "--decode", "gpu"], "not for dali on cpu"),
        (["--pipeline", "cpu", "--decode-hardware", "0.5"], "belongs to --pipeline dali"),
        (["--decode-hardware", "1.5"], "--decode-hardware must be at most 1"),
        (
            ["--pooling", "fused", "--no-channels-last"],
            "--pooling fused belongs to --channels",
        ),
        (["--keep-checkpoints", "1"], "--keep-checkpoints must be at least 2"),
        (["--rank-timeout", "0"], "--rank-timeout must be above 0"),
    ],
)
def test_what_does_not_go_together(
    image_folder: Path,
    tmp_path: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "dali" in options:
        pytest.importorskip("nvidia.dali")
    assert run(image_folder, tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "run").exists()


def test_views_that_are_apart_are_copied_into_one() -> None:
    pool = torch.rand(9, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    number = torch.arange(4)

    def batch(clean: torch.Tensor, perturbed: torch.Tensor) -> PairBatch:
        return PairBatch(clean, perturbed, number, number)

    adjacent = batch(pool[1:5], pool[5:9])
    assert both_views(adjacent).data_ptr() == pool[1:].data_ptr()
    for one in (
        *(adjacent.part(i, n_parts) for n_parts in (2, 4) for i in range(n_parts)),
        batch(pool[:4], pool[5:]),  # a row between them
        batch(pool[5:], pool[1:5]),
        batch(pool[:4], pool[4:].clone()),
        batch(pool[:4], pool[4:].contiguous()),
        batch(pool[1:5].clone(), pool[5:9]),
    ):
        assert one.perturbed is not None
        both = both_views(one)
        assert torch.equal(both, torch.cat([one.clean, one.perturbed]))
        assert both.untyped_storage().data_ptr() != pool.untyped_storage().data_ptr()


def test_build_refuses_a_gpus_decoder_elsewhere(image_folder: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "resolution": 32}
    with pytest.raises(UserError, match="decode gpu is for the pipeline dali on a GPU"):
        build("cpu", image_folder / "train", decode="gpu", **options)
    with pytest.raises(UserError, match="decode must be one of auto, gpu, cpu"):
        build("cpu", image_folder / "train", decode="tpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "fraction", "accumulate", "world_size", "expected"),
    [(8, 1, 1, 1, 8), (256, 1, 1, 1, 32), (24, 0.25, 1, 1, 6), (64, 1, 2, 4, 8), (72, 1, 6, 1, 12)],
)
def test_plain_training_looks_at_few_pairs(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    fraction: float,
    accumulate: int,
    world_size: int,
    expected: int,
) -> None:
    words = ["imagenet", "--data", str(image_folder), "--batch-size", str(batch)]
    words += ["--paired-fraction", str(fraction), "--accumulate", str(accumulate)]
    ranks = Ranks()
    ranks.world_size = world_size
    constrained, plain = parse(words), parse([*words, *PLAIN])
    assert run_data.paired_fraction(constrained, ranks) == fraction
    assert math.isclose(run_data.paired_fraction(plain, ranks) * batch, expected)


def test_plain_figures_are_those_of_the_rows_that_have_two_views(
    image_folder: Path, tmp_path: Path
) -> None:
    """With batches of 16 eight of them: as with half of the batch paired."""
    more = [*MORE, "--batch-size", "16", "--max-steps", "1", "--paired-fraction", "0.5"]
    assert run(image_folder, tmp_path / "plain", *more[:-2], *PLAIN) == 0
    assert run(image_folder, tmp_path / "half", *more, *PLAIN) == 0
    (one,), (other,) = events(tmp_path / "plain", "step"), events(tmp_path / "half", "step")
    assert one["ds"] == other["ds"] > 0
    assert one["ds_relative"] == other["ds_relative"]
    assert events(tmp_path / "plain", "header")[0]["pairs"] == 8
