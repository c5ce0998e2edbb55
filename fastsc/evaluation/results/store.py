"""What an evaluation leaves in its folder: cached parts, rows per image, results.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.lock import locked
from fastsc.errors import UserError
from fastsc.evaluation.results.answers import Answer, Arrays, PartCache
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.results.statistics import Difference, Estimate
from fastsc.pipelines.disk import doing
from fastsc.pipelines.reading import finite, load_arrays
from fastsc.run.checkpoint import write_atomically

MAX_PART = 2**34  # bytes of a part's arrays
MAX_NAME = 200  # bytes of a model's folder: most disks take 255, with what tells it from others
_SEAL = "seal"  # the name of an array that no part has
FORMAT = 2  # part of every key: raise it when a part's arrays change their meaning


@contextmanager
def opened(root: Path) -> Iterator[Store]:
    """The folder of an evaluation, which no other command writes within the context.

    Raises:
        UserError: It cannot be written, or another is at work there.
    """
    with locked(root):
        yield Store(root)


class Store:
    """The folder of an evaluation.

    cache/KEY.npz holds the arrays of one part of a question. KEY is a hash of all that they depend
    on: model, data, settings. What is there is not computed again, whoever asks.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.computed = 0  # parts
        try:
            (root / "cache").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {root} cannot be written: {error.strerror}; name another folder"
            ) from None

    def cache(self, **scope: object) -> PartCache:
        """A cache of arrays that depend on the scope, JSON values, besides a part's settings."""

        def cached(
            part: str, settings: Mapping[str, object], compute: Callable[[], Arrays]
        ) -> Arrays:
            key = _key({"format": FORMAT, "part": part, "settings": settings, **scope})
            path = self.root / "cache" / f"{key}.npz"
            arrays = _load(path, key)
            if arrays is None:
                arrays = compute()
                write_arrays(path, {**arrays, _SEAL: _seal(key, arrays)})
                self.computed += 1
            return arrays

        return cached

    def write(self, evaluation: Evaluation) -> None:
        """rows/MODEL/QUESTION-TABLE.npz and results.json, each whole or not at all."""
        for model, folder in zip(evaluation.models, self.folders(evaluation), strict=True):
            for question, answer in model.answers.items():
                for name, table in answer.tables.items():
                    arrays = {"index": table.index, **table.columns}
                    if "path" not in arrays:  # a table of another data set names its own files
                        arrays["path"] = np.array([evaluation.image_name(i) for i in table.index])
                    write_arrays(self.root / folder / f"{question}-{name}.npz", arrays)
        text = json.dumps(results(evaluation, self.folders(evaluation)), indent=1, allow_nan=False)
        write_text(self.root / "results.json", text + "\n")

    def folders(self, evaluation: Evaluation) -> list[str]:
        """Each model's folder of rows, relative to the root, in the models' order."""
        folders: list[str] = []
        for model in evaluation.models:
            name = re.sub(r"[^\w.-]+", "-", model.name).strip(".-") or "model"
            name = name.encode()[:MAX_NAME].decode(errors="ignore")
            taken = {folder.casefold() for folder in folders}
            while f"rows/{name}".casefold() in taken:
                name += "-2"
            folders.append(f"rows/{name}")
        return folders


def results(evaluation: Evaluation, folders: Iterable[str]) -> dict[str, Any]:
    """The content of results.json: figures, comparisons, and how each is made of which rows."""
    rows = dict(zip((model.name for model in evaluation.models), folders, strict=True))
    return {
        "metadata": finite(dict(evaluation.metadata)),
        "results": [
            {
                "model": model.name,
                "question": question,
                "name": measure.name,
                **_plain(answer[measure.name]),
                "statistic": measure.statistic,
                "rows": f"{rows[model.name]}/{question}-{measure.table}.npz",
                "columns": list(measure.columns),
            }
            for model in evaluation.models
            for question, answer in model.answers.items()
            for measure in answer.measures
        ],
        "comparisons": [
            {
                "model": c.model,
                "against": c.against,
                "question": c.question,
                "name": c.name,
                **_plain(c.difference),
            }
            for c in evaluation.comparisons
        ],
        "left_out": [
            {"model": model.name, "question": question, "reason": reason}
            for model in evaluation.models
            for question, reason in _left_out(model.left_out, model.answers)
        ],
    }


def _left_out(
    questions: Mapping[str, str], answers: Mapping[str, Answer]
) -> Iterable[tuple[str, str]]:
    yield from questions.items()
    for question, answer in answers.items():
        for reason in answer.left_out:
            yield question, reason


def _plain(figure: Estimate | Difference) -> dict[str, Any]:
    """Its fields; null where a value is undefined, or lies beyond the range that was searched."""
    values: dict[str, Any] = finite(vars(figure))
    if any(isinstance(v, float) and math.isinf(v) for v in vars(figure).values()):
        values["note"] = "null: beyond the range that was searched"
    return values


def _key(parts: Mapping[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_text(path: Path, text: str) -> None:
    """A UTF-8 file, whole or not at all; what UTF-8 cannot hold is escaped by a backslash.

    Raises:
        UserError: The disk does not take it.
    """

    def write(part: str) -> None:
        with doing(f"writing {path}"):
            Path(part).write_text(text, "utf-8", "backslashreplace")

    write_atomically(path, write)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz without pickles, whole or not at all.

    Raises:
        UserError: The disk does not take it.
    """

    def write(part: str) -> None:
        with doing(f"writing {path}"), open(part, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def _load(path: Path, key: str) -> Arrays | None:
    """The arrays of a part; None where the file is absent, damaged or another part's."""
    try:
        arrays = load_arrays(path, str(path), MAX_PART)
        seal = arrays.pop(_SEAL, np.empty(0))
        return arrays if np.array_equal(seal, _seal(key, arrays)) else None
    except UserError:
        return None


def _seal(key: str, arrays: Arrays) -> NDArray[np.uint8]:
    """(32,) a hash of a part's key and content: what was copied or changed is computed anew."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
