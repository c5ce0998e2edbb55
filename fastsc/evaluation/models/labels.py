"""Which of a model's outputs is an image's class: by name, by WordNet, by order, or by a map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.console import printable
from fastsc.config.yaml_text import parse_yaml
from fastsc.errors import UserError
from fastsc.evaluation.data import Split, some
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.sources import Source
from fastsc.loading.libraries import imagenet_lemmas
from fastsc.pipelines.fields import did_you_mean, shown
from fastsc.pipelines.reading import parse_json, read_text

NONE = -1
MAX_DIGITS = 18  # of an output's number


@dataclass(frozen=True, eq=False)
class Labels:
    """The right outputs of a model.

    Attributes:
        targets: (n,) int64, by dataset index; -1 where it is not known.
        reason: Why some are not known, and what to do; one line. None: all are.
        how: What the labels come from: "names", "order", "map" or "nothing".
        outputs: Of each class folder, or of the map; -1 where it is not known.
    """

    targets: NDArray[np.int64]
    reason: str | None
    how: str
    outputs: Mapping[str, int]


def map_labels(
    split: Split, source: Source, class_map: Path | None = None, others: Sequence[str] = ()
) -> Labels:
    """The model's output for the class folder of each image.

    Folders are found by the names of the model's classes: as they are, else without regard to case,
    spaces, underscores and a number's leading zeros; of several names with commas between them each
    counts, in a folder's name too where they lead to one output. ImageNet's also go by their
    WordNet names ("n01440764").
    Where a model has no names and as many outputs as there are folders, these are taken in sorted
    order, as torchvision's ImageFolder has them, though one in twenty be called as a class of
    ImageNet; where it has names and the folders are called 0 to n - 1, by number.

    Args:
        split: The images.
        source: The model.
        class_map: A JSON or YAML file, class folder -> output, by number or by name; it wins over
            the folder's name.
        others: Further classes that the map may name: of pairs of pictures.

    Raises:
        UserError: The map cannot be read, or names a folder or an output that there is not.
    """
    index, model = split.index, source.classifier
    nothing = np.full(len(index), NONE, np.int64)
    names, folders = _Names(source), index.classes if split.labelled else ()
    given: dict[str, int] = {}
    if class_map is not None:
        if not folders and not others:
            raise UserError(f"--class-map {class_map}: {index.root} has no class folders to map")
        given = _read_map(class_map, (*folders, *others), names)
    if not split.labelled:
        why = "the images have no labels: they lie in no class folders"
        return Labels(nothing, why, "nothing", given)
    outputs = {folder: names.find(folder) for folder in folders}
    n_found, how = sum(output != NONE for output in outputs.values()), "names"
    as_many = len(folders) == model.n_classes
    if class_map is not None:
        outputs, how = outputs | given, "map"
    elif not n_found or (as_many and model.classes is None and 20 * n_found < len(folders)):
        numbered = tuple(map(str, range(model.n_classes)))
        if not as_many or (model.classes is not None and set(folders) != set(numbered)):
            return Labels(nothing, _mismatch(folders, model), "nothing", {})
        order = folders if model.classes is None else numbered
        outputs, how = {folder: i for i, folder in enumerate(order)}, "order"
    targets = np.array([outputs[folder] for folder in folders], np.int64)[index.targets]
    return Labels(targets, _unmapped(split, targets, outputs), how, outputs)


def map_pairs(split: Split, source: Source, data: Labels) -> Labels:
    """The model's output for each picture of a list of pairs, "" being a picture without a label.

    A label is the data's class folder of that name, or what the map says of it, else one of the
    model's classes by its name. Their order says nothing: a list need not have all of them.
    """
    names, classes = _Names(source), split.index.classes
    are_named = data.how != "order" or source.classifier.classes is not None
    of_class = []
    for name in classes:
        output = data.outputs.get(name, NONE) if name else NONE
        if output == NONE and name and are_named:
            output = names.find(name)
        of_class.append(output)
    targets = np.array(of_class, np.int64)[split.index.targets]
    lost = [name for name, output in zip(classes, of_class, strict=True) if name and output == NONE]
    reason = None
    if lost:
        reason = (
            f"pictures that are labelled {some(lost)}: the label is neither a class folder of the "
            "data nor one of the model's classes: --class-map FILE"
        )
    return Labels(targets, reason, data.how, data.outputs)


class _Names:
    """A model's outputs by what they may be called."""

    def __init__(self, source: Source) -> None:
        self.model = source.classifier
        own, synsets = self.model.classes or (), source.synsets or ()
        others = imagenet_lemmas() if source.synsets is not None else ()
        self._tables = [
            _table(enumerate(own)),
            _table(enumerate(synsets)),
            _table((i, _plain(name)) for i, name in enumerate(own)),
            _table((i, _plain(name)) for i, name in enumerate(others)),
            _table((i, _plain(part)) for i, name in enumerate(own) for part in name.split(",")),
            _table((i, _plain(part)) for i, name in enumerate(others) for part in name.split(",")),
        ]

    def find(self, name: str) -> int:
        """The output of a name, or -1 where none has it, or several have."""
        if (output := self._find(name)) != NONE or "," not in name:
            return output
        outputs = {self._find(part) for part in name.split(",")} - {NONE}
        return outputs.pop() if len(outputs) == 1 else NONE

    def _find(self, name: str) -> int:
        for table, word in zip(self._tables, (name, name, *[_plain(name)] * 4), strict=True):
            if table.get(word, NONE) != NONE:
                return table[word]
        return NONE

    def near(self, name: str) -> str:
        """A half sentence that names the nearest class, or nothing."""
        return did_you_mean(name, self.model.classes or ())


def _plain(name: str) -> str:
    """Without what names of one class differ by: case, spaces, a number's leading zeros."""
    if name.isdecimal():
        return name.lstrip("0") or "0"
    return "".join(name.casefold().replace("_", " ").split())


def _table(names: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Name -> output; -1 for a name that two outputs have."""
    table: dict[str, int] = {}
    for output, name in names:
        table[name] = output if table.get(name, output) == output else NONE
    return table


def _read_map(path: Path, folders: tuple[str, ...], names: _Names) -> dict[str, int]:
    """Folder -> output, out of a user's file."""
    what = f"--class-map {path}"
    text = read_text(path, what)
    if path.suffix.lower() == ".json":
        read = parse_json(text, what)
    else:
        read = parse_yaml(text, what, words=True)
    if not isinstance(read, Mapping) or not read:
        raise UserError(f"{what}: must say a class folder's output line by line, as apple: 3")
    outputs: dict[str, int] = {}
    for key, value in read.items():
        folder = printable(str(key))
        if folder not in folders:
            raise UserError(
                f"{what}: the data has no class folder {shown(folder)}"
                f"{did_you_mean(folder, folders)}"
            )
        outputs[folder] = _output(value, f"{what}: {folder}", names)
    return outputs


def _output(value: object, what: str, names: _Names) -> int:
    n = names.model.n_classes
    if isinstance(value, str):
        output = names.find(value)
        if output != NONE:
            return output
        if not value.isdecimal() or len(value) > MAX_DIGITS:
            raise UserError(
                f"{what}: the model has no one class {shown(value)}{names.near(value)}; its "
                f"outputs have numbers, too, 0 to {n - 1}"
            )
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        raise UserError(f"{what}: the model has outputs 0 to {n - 1}, and no {shown(value)}")
    return value


def _mismatch(folders: tuple[str, ...], model: Classifier) -> str:
    if model.classes is None:
        return (
            f"the data has {len(folders)} classes and the model {model.n_classes} outputs, whose "
            "names are not known: --class-map FILE"
        )
    return (
        f"none of the data's {len(folders)} class folders ({some(folders)}) is called as one of "
        f"the model's {model.n_classes} classes ({some(model.classes)}): --class-map FILE"
    )


def _unmapped(split: Split, targets: NDArray[np.int64], outputs: Mapping[str, int]) -> str | None:
    usable = targets[split.index.usable]
    n = int((usable == NONE).sum())
    if not n:
        return None
    folders = [folder for folder, output in outputs.items() if output == NONE]
    return (
        f"{n} of {len(usable)} images have no label, since their class folders ({some(folders)}) "
        "are called as none of the model's classes: --class-map FILE"
    )
