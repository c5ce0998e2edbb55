"""A run's folder: config.yaml, log.jsonl, checkpoints/, weights.safetensors."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastsc.cli.leftovers import LOCK
from fastsc.cli.parser import MAX_FOLDERS
from fastsc.config import TrainConfig
from fastsc.config.recipes import dump
from fastsc.errors import UserError
from fastsc.pipelines.disk import doing

CHECKPOINT = re.compile(r"step-(\d{8,12})\.pt")
# What a run and its sinks write next to config.yaml before the first step.
WRITTEN = (
    LOCK, "log.jsonl", "ranks", "checkpoints", "steps.csv", "epochs.csv", "tensorboard", "wandb",
    "wandb-id.txt",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files are; nothing is written before `create`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    def log_of(self, rank: int) -> Path:
        """A rank's log; the main one's is the run's."""
        return self.root / "ranks" / f"rank-{rank}.jsonl" if rank else self.log

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def saved_steps(self) -> list[int]:
        """The steps of the checkpoints that lie there, in no order."""
        if not self.checkpoints.is_dir():
            return []
        matches = [CHECKPOINT.fullmatch(path.name) for path in self.checkpoints.iterdir()]
        return [int(match[1]) for match in matches if match is not None]

    @property
    def weights(self) -> Path:
        return self.root / "weights.safetensors"

    @property
    def before(self) -> Path:
        """Of --objective self: the network as it was."""
        return self.root / "before.safetensors"

    @property
    def page(self) -> Path:
        """Of --objective self: the comparison of before and after."""
        return self.root / "evaluation" / "report.html"

    @classmethod
    def choose(cls, config: TrainConfig) -> RunFolder:
        """--out, or runs/RECIPE-DATE-TIME.

        Raises:
            UserError: It is occupied and this is no resume, or it cannot be made there.
        """
        out, resume = config.run.out, config.run.resume
        if out is None:
            if resume:
                raise UserError("--resume goes on in a run's folder: name it with --out DIR")
            name = Path(config.recipe).stem
            out = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        root = Path(out)
        if not out or "\0" in out:
            raise UserError("--out is empty or no path; name a folder")
        if len(root.parts) > MAX_FOLDERS:
            raise UserError(f"--out: more than {MAX_FOLDERS} folders in each other")
        try:
            there = _nearest(root)
        except OSError as error:
            raise UserError(f"--out {root}: {error.strerror}") from None
        if there == root and not root.is_dir():
            raise UserError(f"--out {root}: is a file, not a folder")
        if there == root and not _nothing_yet(root):
            if not resume:
                raise UserError(
                    f"--out {root}: is not empty; go on there with --resume, or name another folder"
                )
            if not cls(root).config.is_file():
                raise UserError(f"--out {root}: --resume finds no run there, but other files")
        for images in _image_folders(config):
            if root.resolve().is_relative_to(images.resolve()):
                raise UserError(
                    f"--out {root} lies in {images}, among the images, and would count as a class; "
                    "name another folder"
                )
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"--out {root}: {there} cannot be written to")
        return cls(root)

    def create(self, config: TrainConfig, *, fresh: bool) -> Callable[[], None]:
        """Writes the resolved configuration, under the run's lock; returns what undoes it.

        fresh: no run was there at the first check.

        Raises:
            UserError: Another run came first, while this one read its data; or a full disk.
        """
        if fresh and self.config.exists():
            raise UserError(f"--out {self.root}: another run has begun there; name another folder")
        rollback = self._remember()
        try:
            text = dump(config.replace(out=str(self.root), resume=False))
            with doing(f"writing {self.config}"):
                self._part.write_text(text, encoding="utf-8")
                os.replace(self._part, self.config)  # it marks a run's folder
                self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            rollback()
            raise UserError(f"--out {self.root}: cannot be written ({error.strerror})") from None
        return rollback

    def require(self) -> None:
        """Raises UserError where the folder was removed in the meantime."""
        with doing(f"looking for {self.config}"):
            there = self.config.exists()
        if not there:
            raise UserError(
                f"--out {self.root} has been removed while the run was at work in it; what it had "
                "written is gone"
            )

    @property
    def _part(self) -> Path:
        return self.config.with_suffix(".part")

    def _remember(self) -> Callable[[], None]:
        """A function that leaves the folder as it is now; a run's files in it are its own."""
        before = self.config.read_bytes() if self.config.exists() else None

        def rollback() -> None:
            if before is not None:
                self.config.write_bytes(before)
                return
            for name in ("config.yaml", self._part.name, *WRITTEN):
                path = self.root / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

        return rollback


def _image_folders(config: TrainConfig) -> list[Path]:
    """The folders of which each folder is a class."""
    data = config.data
    if data.pipeline == "ffcv":
        return []
    root = Path(data.data)
    val = {"none": [], "auto": [root / "val", root / "test"]}.get(data.val, [Path(data.val)])
    trained = root / "train"
    if config.method.objective == "self" and not trained.is_dir():  # they need no class folders
        trained = root
    return [trained, *next(([folder] for folder in val if folder.is_dir()), [])]


def _nothing_yet(root: Path) -> bool:
    """An empty folder, or one where a run was killed as it began."""
    left = {LOCK, "log.jsonl", "config.part"}
    return all(path.name in left and not path.is_dir() for path in root.iterdir()) and not any(
        path.stat().st_size for path in root.glob("log.jsonl")
    )


def _nearest(path: Path) -> Path:
    """The path, or the closest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
