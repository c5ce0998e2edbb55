"""What the headers of one tar say of its images, and of the labels beside them."""

from __future__ import annotations

import os
import re
from array import array
from dataclasses import dataclass, field

from fastsc.pipelines.disk import doing
from fastsc.pipelines.fields import is_text, shown
from fastsc.pipelines.files import Shard
from fastsc.pipelines.lists import MAX_LABEL
from fastsc.pipelines.reading import MAX_TEXT, parse_line
from fastsc.pipelines.tar import Member, TarError, members, read_at
from fastsc.pipelines.walk import EXTENSIONS, is_system

JPEGS = ".jpg", ".jpeg"

LABEL_KEY = "label"  # in a KEY.json
Label = int | str


@dataclass
class Walked:
    """The images of some shards, in the order of the shards: columns, a row each."""

    names: list[str] = field(default_factory=list)
    shards: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: dict[tuple[int, str], Label | TarError] = field(default_factory=dict)  # shard and key
    faults: list[tuple[int, str, str]] = field(default_factory=list)  # shard, name, reason
    hidden: list[str] = field(default_factory=list)


def walk(i: int, shard: Shard, label_key: str | None) -> Walked:
    walked = Walked()
    with doing(f"opening {shard.path}"):
        file = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if shard.n_bytes == 0:
            raise TarError("empty file")
        for member in members(shard.path, file, shard.n_bytes):
            _add(walked, i, member, shard.path, file, label_key)
    except TarError as error:
        walked.faults.append((i, error.name and _plain(error.name), str(error)))
    finally:
        os.close(file)
    return walked


def _add(
    walked: Walked, i: int, member: Member, path: str, file: int, label_key: str | None
) -> None:
    name = _plain(member.name)
    extension = os.path.splitext(name)[1]
    is_label = extension in (".cls", ".json")
    if not is_label and not name.lower().endswith(EXTENSIONS):
        return
    if any(map(is_system, name.split("/"))):
        if not is_label:
            walked.hidden.append(name)
    elif member.refusal is not None:
        walked.faults.append((i, name, member.refusal))
    elif not is_label:
        walked.names.append(name)
        walked.shards.append(i)
        walked.offsets.append(member.offset)
        walked.sizes.append(member.n_bytes)
    elif extension == ".json" or label_key is None:
        label = _label(member, path, file, extension, label_key or LABEL_KEY)
        if walked.labels.setdefault((i, name), label) != label:
            walked.labels[i, name] = TarError(f"there are two {name} in its tar, which differ")


def _plain(name: str) -> str:
    """A member's name without what tar puts before it: ./CLASS/photo.jpg, /CLASS/photo.jpg."""
    return re.sub(r"^(\./+|/+)*", "", name)


def _label(
    member: Member, path: str, file: int, extension: str, label_key: str
) -> Label | TarError:
    if member.n_bytes > MAX_TEXT:
        return TarError(f"its label has {member.n_bytes:,} bytes")
    content = member.head[: member.n_bytes]
    if len(content) < member.n_bytes:
        content = read_at(path, file, member.n_bytes, member.offset)
    if extension == ".json":
        values = parse_line(content)
        if values is None:
            return TarError("its label's file is not JSON with names and values")
        value = values.get(label_key)
        if value is None:
            there = ", ".join(map(str, list(values)[:5])) or "nothing"
            return TarError(
                f"its JSON has no {label_key}, but {there}; --label-key names the field"
            )
    else:
        value = text = content.decode("utf-8", "replace").strip()
        if text.isascii() and text.isdecimal() and len(text) < 10:
            value = int(text)
        elif _is_number(text):  # a name of which would be mixed with the others' numbers
            return TarError(
                f"its label is {shown(text)}, and neither a number from 0 on nor a name"
            )
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LABEL:
        return value
    if isinstance(value, str) and value and is_text(value):
        return value
    return TarError(f"its label is {shown(value)}, and neither a number from 0 on nor a name")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def companions(walked: Walked) -> tuple[set[int], set[int]]:
    """Rows of images that share their label with another of their sample.

    The first of the two sets are parts of a sample that has an image called by its key alone
    (KEY.seg.png and KEY.png of KEY.jpg; of several such a JPEG comes first), and none of their own;
    of the second nobody can say which is the sample's image (KEY.image.jpg, KEY.mask.png). What has
    a label of its own, KEY.seg.cls, is a sample of its own.
    """
    parts, unclear = set[int](), set[int]()
    row, n = 0, len(walked.names)
    while row < n:  # shard by shard: of a million samples nearly none has two images
        i, first, more = walked.shards[row], dict[str, int](), dict[str, list[int]]()
        while row < n and walked.shards[row] == i:
            key = key_of(walked.names[row])
            if (before := first.setdefault(key, row)) != row:
                more.setdefault(key, [before]).append(row)
            row += 1
        for key, rows in more.items():
            _sort_out(walked, i, key, rows, parts, unclear)
    return parts, unclear


def _sort_out(
    walked: Walked, i: int, key: str, rows: list[int], parts: set[int], unclear: set[int]
) -> None:
    names = walked.names
    plain = [row for row in rows if _stem(names[row]) == key]
    others = [row for row in rows if _stem(names[row]) != key]
    shared = [row for row in others if not _labels_of(walked, i, _stem(names[row]))]
    if plain:
        plain.sort(key=lambda row: (not names[row].lower().endswith(JPEGS), names[row]))
        # A second one of the same name is a fault, which the caller names.
        parts.update(row for row in plain[1:] if names[row] != names[plain[0]])
        parts.update(shared)
    elif len(shared) > 1 and _labels_of(walked, i, key):
        unclear.update(shared)


def _labels_of(walked: Walked, i: int, stem: str) -> bool:
    return any((i, stem + extension) in walked.labels for extension in (".cls", ".json"))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def key_of(name: str) -> str:
    """WebDataset's: without all that follows the first dot behind the folders."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def label_of(walked: Walked, row: int) -> Label | TarError | None:
    """What lies beside an image: under its name without the extension, or without all that follows
    the first dot, which is WebDataset's key."""
    i, name = walked.shards[row], walked.names[row]
    for stem in (_stem(name), key_of(name)):
        for extension in (".cls", ".json"):  # where a field of the second is asked for, it is alone
            if (i, stem + extension) in walked.labels:
                return walked.labels[i, stem + extension]
    return None
