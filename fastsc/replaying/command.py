"""What `fastsc.replay` does with the words of its command line.

Every choice of a run is a function of its seed, the epoch and the image: a batch is decoded again
without any before it. What is written lies in a folder of its own, RUN/replay/step-N: batch.npz and
sheet.png. The run may be going on at the same time; nothing of it is touched.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fastsc.cli.console import write_line
from fastsc.cli.leftovers import claimed, in_use, remove_stale
from fastsc.cli.parser import Parser, folder_name, whole
from fastsc.errors import UserError
from fastsc.pipelines.disk import doing

if TYPE_CHECKING:
    from fastsc.replaying.rebuild import Rebuilt

FILES = ("batch.npz", "sheet.png")  # or sheet-1.png, sheet-2.png, …


def run(words: list[str]) -> int:
    """Parses the options, rebuilds and writes, and says what it was."""
    args = _parser().parse_args(words)
    from fastsc.replaying.history import History

    history = History.read(args.run)
    record = history.at(args.step)
    name = f"step-{record.step:08d}" + (f"-rank-{args.rank}" if args.rank is not None else "")
    out: Path = args.out or args.run / "replay" / name
    _check_free(out)

    from fastsc.errors import StalledError  # torch takes seconds; a mistake should not
    from fastsc.replaying.export import table
    from fastsc.replaying.rebuild import ReplayOptions, rebuild

    options = ReplayOptions(args.rank, args.data, args.pipeline, args.device)
    try:
        rebuilt = rebuild(history, record, options)
    except StalledError as error:  # a dead mount
        raise UserError(str(error)) from None
    names = _write(out, rebuilt, args.run)
    lines = [*table(rebuilt), *(f"note: {note}" for note in rebuilt.notes)]
    lines += [f"wrote {out / name}" for name in names]
    write_line("\n".join(lines))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastsc.replay",
        description="Rebuild the batch of a past training step from a run's log and its images: "
        "files, crops, flips and factors, as batch.npz and a contact sheet.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=folder_name, help="a run's folder, the --out of its training")
    add(
        "--step",
        metavar="N",
        type=whole(-(10**12), 10**12),
        help="the optimizer step, from 1, as log.jsonl counts them; default: the last one whose "
        "loss was not finite, with the images that the log names for it",
    )
    add(
        "--rank",
        metavar="R",
        type=whole(-(2**20), 2**20),
        help="only what this process of several saw; default: the whole batch, in which its row i "
        "is row i · N + R of N processes'",
    )
    add("--data", metavar="DIR", help="the run's --data, where it has moved")
    add(
        "--pipeline",
        choices=("dali", "cpu", "ffcv", "memory"),
        help="another than the run's; pixels may differ, all else stays",
    )
    add(
        "--device",
        help="cpu, cuda or cuda:N; default: the run's, or the CPU where there is no GPU",
    )
    add(
        "--out",
        metavar="DIR",
        type=folder_name,
        help="default: RUN/replay/step-00000123, or …-rank-1; an earlier replay there is replaced",
    )
    return parser


# --- files ----------------------------------------------------------------------------------------


def _check_free(out: Path) -> None:
    """Raises UserError where something else than a replay lies there."""
    try:
        if out.is_dir() and not (existing := {path.name for path in out.iterdir()}) <= _ours(
            existing
        ):
            raise UserError(f"--out {out}: holds other files than a replay's; name another folder")
        if not out.is_dir() and (out.exists() or out.is_symlink()):
            raise UserError(f"--out {out}: is a file, not a folder")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None


def _ours(names: set[str]) -> set[str]:
    """Those of the names that a replay writes."""
    return {
        name
        for name in names
        if name in FILES or (name.startswith("sheet-") and name[6:].removesuffix(".png").isdigit())
    }


def _write(out: Path, rebuilt: Rebuilt, run: Path) -> list[str]:
    """batch.npz and the sheets into a new folder, which then takes its place whole.

    Returns:
        The names of the files.

    Raises:
        UserError: The disk does not take them; what was there stays.
    """
    import numpy as np

    from fastsc.plotting.contact_sheet import draw_sheets
    from fastsc.replaying.export import arrays, pairs, titles

    place = out.resolve()  # a link stays one
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        remove_stale(place.parent.glob(f".{escape(place.name)}.*.old"))
        place.parent.mkdir(parents=True, exist_ok=True)
        with claimed(part, folder=True):
            with doing(f"writing {out / 'batch.npz'}"):
                np.savez(part / "batch.npz", **arrays(rebuilt))
            sheets = draw_sheets(pairs(rebuilt), *titles(rebuilt, run))
            for i, sheet in enumerate(sheets, 1):
                with doing(f"writing {out / 'sheet.png'}"):
                    sheet.save(part / (f"sheet-{i}.png" if len(sheets) > 1 else "sheet.png"))
            names = sorted((path.name for path in part.iterdir()), key=lambda n: (len(n), n))
            _put(part, place)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            why = f"{error.strerror or error}; name a folder with --out DIR"
            raise UserError(f"{out} cannot be written: {why}") from None
        raise
    return names


def _put(part: Path, out: Path) -> None:
    """Renames a folder to `out`; an earlier replay there is gone afterwards."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    replaces = out.is_dir()
    with in_use(out) if replaces else nullcontext():
        if replaces:
            out.rename(old)
        try:
            part.rename(out)
        except OSError:
            if replaces:
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
