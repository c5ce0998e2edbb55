"""The log's figures for other eyes: CSV files, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from fastsc.config import TrainConfig
from fastsc.errors import UserError, first_line
from fastsc.pipelines.reading import read_text, require_file_or_nothing
from fastsc.run.log import cut_torn_end

# Columns of a step's line, in order, so that a file that is appended to keeps its head.
STEP = (
    "step", "epoch", "loss", "ce", "ds", "ds_relative", "alpha", "lr", "pairs_per_s",
    "loader_wait", "between", "effective_rank", "grad_norm",
)  # fmt: skip
EPOCH = ("epoch", "step", "seconds", "top1", "top5", "top1_perturbed", "ds", "ds_relative", "n")


class Sink(Protocol):
    """Something that wants the figures of steps and epochs; `name` is its option."""

    name: str

    def step(self, figures: dict[str, Any]) -> None: ...
    def epoch(self, figures: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@contextmanager
def open_sinks(config: TrainConfig, root: Path) -> Iterator[list[Sink]]:
    """The sinks that a run asked for, writing below its folder; closed after the context.

    Raises:
        UserError: One cannot be opened; those before it are closed.
    """
    run, method = config.run, config.method
    columns = (
        *STEP,
        *(["ds_target_gap"] if method.ds_target is not None else []),
        *(["disagreement"] if method.objective == "self" else []),
        *(["keep_gap"] if method.keep is not None else []),
    )
    wanted: list[tuple[bool, Callable[[], Sink]]] = [
        (run.csv, lambda: CsvSink(root, columns)),
        (run.tensorboard, lambda: TensorBoardSink(root / "tensorboard")),
        (run.wandb, lambda: WandbSink(config, root)),
    ]
    sinks: list[Sink] = []
    with ExitStack() as stack:
        for asked, make in wanted:
            if asked:
                try:
                    sinks.append(make())
                except OSError as error:
                    raise UserError(f"--out {root}: cannot be written ({error})") from None
                except UnicodeEncodeError:  # of TensorBoard's files, and of Weights & Biases'
                    raise UserError(f"--out {root}: is no UTF-8; name another folder") from None
                stack.callback(sinks[-1].close)
        yield sinks


class CsvSink:
    """steps.csv and epochs.csv; a resumed run appends, as to log.jsonl."""

    name = "csv"

    def __init__(self, root: Path, step: tuple[str, ...] = STEP) -> None:
        self._paths = {"step": root / "steps.csv", "epoch": root / "epochs.csv"}
        self._step = step
        for path, columns in zip(self._paths.values(), (step, EPOCH), strict=True):
            require_file_or_nothing(path)
            cut_torn_end(path)
            if not path.exists() or not path.stat().st_size:
                self._write(path, columns)

    def step(self, figures: dict[str, Any]) -> None:
        self._write(self._paths["step"], [figures.get(name) for name in self._step])

    def epoch(self, figures: dict[str, Any]) -> None:
        self._write(self._paths["epoch"], [figures.get(name) for name in EPOCH])

    def close(self) -> None:
        pass

    @staticmethod
    def _write(path: Path, row: Any) -> None:
        with open(path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


class TensorBoardSink:
    """Scalars train/* by step and val/* by the epoch's last step."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def step(self, figures: dict[str, Any]) -> None:
        self._add("train", figures)

    def epoch(self, figures: dict[str, Any]) -> None:
        self._add("val", figures)

    def _add(self, group: str, figures: dict[str, Any]) -> None:
        for name, value in _numbers(figures).items():
            self._writer.add_scalar(f"{group}/{name}", value, figures["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of the project fastsc, or $WANDB_PROJECT; WANDB_MODE=offline works as ever."""

    name = "wandb"

    def __init__(self, config: TrainConfig, root: Path) -> None:
        import wandb

        str(root).encode()  # its service is told the folder as text
        kept = root / "wandb-id.txt"  # so that a resumed run goes on as the same one there
        name = os.environ.get("WANDB_RUN_ID")
        if kept.exists():
            name = read_text(kept, str(kept), most=1000)
        name = name or uuid.uuid4().hex
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fastsc"),
                id=name,
                name=root.name,
                dir=str(root),
                config=config.flat(),
                resume="allow",
            )
        except Exception as error:  # noqa: BLE001, no login, no network, a setting that is wrong
            reason = first_line(error).removesuffix(".")
            raise UserError(
                f"--wandb: {reason}; `wandb login`, or WANDB_MODE=offline, or leave the option out"
            ) from None
        kept.write_text(name, "utf-8")

    def step(self, figures: dict[str, Any]) -> None:
        self._log("train", figures)

    def epoch(self, figures: dict[str, Any]) -> None:
        self._log("val", figures)

    def _log(self, group: str, figures: dict[str, Any]) -> None:
        scalars = {f"{group}/{name}": value for name, value in _numbers(figures).items()}
        self._run.log(scalars, step=figures["step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    values = {k: v for k, v in figures.items() if k not in ("step", "epoch")}
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
