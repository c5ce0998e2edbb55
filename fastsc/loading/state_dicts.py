"""From a checkpoint to the weights of one network: which part, under which prefix, what is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.loading.parts import (
    AVERAGED,
    OPTIMIZERS,
    Part,
    n_outer,
    parts_of,
    plain,
    some,
    under,
    walk,
    without_weights,
)
from fastsc.loading.weight_files import Opaque, read_file

# What stands among weights and is none, by name: single numbers in any module, by batch norm, thop,
_COUNTERS = "num_batches_tracked", "total_ops", "total_params", "n_averaged"
# and at the top of a checkpoint or of an average.
_AT_THE_TOP = "num_updates", "initted", "step", "global_step", "decay", "epoch", "best_acc"


class Fitted(NamedTuple):
    """A network's weights out of a file.

    Attributes:
        state: By the network's own names, as far as they fit; what does not has the file's names.
        notes: What was chosen and what was left out, one line each.
    """

    state: dict[str, Any]
    notes: tuple[str, ...]


class WeightsFile(NamedTuple):
    """A file of weights, and which part of it.

    Attributes:
        key: The dotted path of the part: of keys, then of the names in it. None: what fits best.
        option: That named the file.
    """

    path: Path
    key: str | None = None
    option: str = "--weights"

    @property
    def advice(self) -> str:
        """How another part is chosen, where that can be."""
        return "; --weights-key KEY chooses" if self.option == "--weights" else ""


def read_weights(file: WeightsFile, net: nn.Module, passed_over: tuple[str, ...] = ()) -> Fitted:
    """The weights of a network out of a file of safetensors' or torch.save's.

    They may lie in mappings and lists, under any prefix that all of the network's names have there.
    Of several such parts the averaged one is taken, as timm does, else the best known by its name.
    An average of the parameters alone is completed by the buffers of the part next to it. Where the
    whole network lies under a prefix, what is outside of it is left out.

    Args:
        file: Nothing in it is run.
        net: Whose names are searched; what does not fit is left to who loads the weights.
        passed_over: Beginnings of the network's names that are left out without a word.

    Raises:
        UserError: There is no such file, it is none of these, or it holds no weights or nothing
            under that key.
    """
    path, key = file.path, file.key
    title = f"{file.option} {path}"
    contents = read_file(path, title)
    contents = contents if key is None else under(contents, key, title)
    shapes = net.state_dict()
    own = {plain(name): name for name in shapes}
    parts = list(parts_of(contents, own))
    if not parts:
        raise UserError(f"{title}{without_weights(contents)}")
    candidates = [
        Part(part.path, part.state, prefix) for part in parts for prefix in _prefixes(part, own)
    ]
    candidates.sort(key=lambda part: part.rank)
    counts = [_n_found(part, own, shapes) for part in candidates]
    complete = [part for part, n in zip(candidates, counts, strict=True) if n == max(counts)]
    best = complete[0]
    prefixes = [part.prefix for part in candidates if part.path == best.path]
    state, left_out = _renamed(best, own, prefixes, passed_over)
    notes = []
    if len(complete) > 1:
        others = ", ".join(repr(part.title or "the top") for part in complete[1:])
        average = ", an average over training" * best.is_average
        notes.append(
            f"{path.name} holds weights of this model more than once: {best.title or 'the top'!r}"
            f"{average}, was taken, not {others}{file.advice}"
        )
    if left_out:
        notes.append(f"{path.name}: left out, being no weights of this model: {some(left_out)}")
    if not best.is_average:
        parameters = {
            name for name, _ in net.named_parameters() if not name.startswith(passed_over)
        }
        averages = [part for part in candidates if part.is_average]
        if note := _averaged(state, averages, own, parameters, best):
            notes.append(f"{path.name}: {note}{file.advice}")
        elif note := _untaken(contents, parts, own):
            notes.append(f"{path.name}: {note}")
    for name, value in shapes.items():  # files from before torch 0.4.1 have none
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    state = {k: v for k, v in state.items() if not k.startswith(passed_over)}
    return Fitted(state, tuple(notes))


def _averaged(
    state: dict[str, Any],
    averages: Iterable[Part],
    own: Mapping[str, str],
    parameters: set[str],
    rest: Part,
) -> str:
    """Put the first average with all of the parameters into a state, and say so; "": none has.

    rest: What the state is of.
    """
    for part in averages:
        values = {
            name: part.state[part.prefix + plain]
            for plain, name in own.items()
            if part.prefix + plain in part.state
        }
        if values.keys() >= parameters and all(
            name in state and _shape(value) == _shape(state[name]) for name, value in values.items()
        ):
            lacking = [name for name in own.values() if name in state and name not in values]
            state.update(values)
            return (
                f"{part.title!r}, an average over training, was taken, with what it lacks of "
                f"{rest.title or 'the top'!r}: {some(lacking)}"
            )
    return ""


def _untaken(contents: object, parts: Iterable[Part], own: Mapping[str, str]) -> str:
    """Name what is called an average and was not taken; "" where nothing is."""
    titles: dict[str, None] = {}  # in order

    def add(path: Sequence[str]) -> None:
        i = next((i for i, name in enumerate(path) if AVERAGED.search(name)), None)
        if i is not None and not any(map(OPTIMIZERS.fullmatch, path)):
            titles[".".join(path[: i + 1])] = None

    for path, value in walk(contents):
        if _may_be_weights(value):
            add(path[:-1] if isinstance(value, Tensor) else path)
    for part in parts:
        for name, value in part.state.items():
            if _may_be_weights(value):
                add((*part.path, *name.split(".")[:-1][: n_outer(name, own)]))
    names = some(map(repr, titles))
    return f"averages without all of the parameters were not taken: {names}" if titles else ""


def _may_be_weights(value: object) -> bool:
    if isinstance(value, Opaque):
        return not type(value).__name__.startswith("numpy")
    return isinstance(value, Tensor) and value.numel() > 1


def _prefixes(part: Part, own: Mapping[str, str]) -> list[str]:
    """What the network's names begin with in a part: where most of them are, and averages of any.

    Where few are, the prefix of all names by the wrappers' custom, so that other names
    can be told from the rest.
    """
    counts: Counter[str] = Counter()
    for name in part.state:
        words = name.split(".")
        for i in range(len(words)):
            if ".".join(words[i:]) in own and not any(map(OPTIMIZERS.fullmatch, words[:i])):
                counts[".".join(words[:i]) + "." * (i > 0)] += 1
    most = max(counts.values(), default=0)
    if 2 * most > len(own):
        return [prefix for prefix, n in counts.items() if n == most or AVERAGED.search(prefix)]
    names = [name for name, value in part.state.items() if not _is_counter(name, value)]
    shared = ""
    for wrapper in ("module.", "model.", "net."):
        if names and all(name.startswith(shared + wrapper) for name in names):
            shared += wrapper
    return [shared]


def _n_found(part: Part, own: Mapping[str, str], shapes: Mapping[str, Any]) -> int:
    """How many of the network's tensors a part has, batch norm's counters apart.

    Numbers of outputs may differ, which are the first axis of a classifier's weights.
    """
    return sum(
        _shape(part.state[part.prefix + name])[1:] == _shape(shapes[own[name]])[1:]
        for name in own
        if part.prefix + name in part.state and name.rpartition(".")[2] not in _COUNTERS
    )


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _renamed(
    part: Part, own: Mapping[str, str], prefixes: Iterable[str], passed_over: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """A part by the network's own names, and what of it is left out as no weights of it.

    prefixes: Of copies of the network's names in it, this part's among them.
    """
    state: dict[str, Any] = {}
    left_out: list[str] = []
    others = [prefix for prefix in prefixes if prefix != part.prefix]
    whole = all(
        part.prefix + plain in part.state
        for plain, name in own.items()
        if plain.rpartition(".")[2] not in _COUNTERS and not name.startswith(passed_over)
    )
    for name, value in part.state.items():
        bare = name.removeprefix(part.prefix)
        inside = name.startswith(part.prefix)
        if inside and bare in own:
            state[own[bare]] = value
        elif not isinstance(value, Tensor) or (others and _is_copy(name, others, own)):
            continue
        elif _is_counter(name, value) or (whole and not inside):
            left_out.append(name)
        else:
            state[bare] = value
    return state, left_out


def _is_copy(name: str, prefixes: Iterable[str], own: Mapping[str, str]) -> bool:
    return any(name.startswith(prefix) and (prefix or name in own) for prefix in prefixes)


def _is_counter(name: str, value: object) -> bool:
    path, _, last = name.rpartition(".")
    one = isinstance(value, Tensor) and value.numel() == 1
    return one and (last in _COUNTERS or (not path and last in _AT_THE_TOP))
