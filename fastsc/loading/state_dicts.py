"""From a checkpoint to the weights of one network: which part, under which prefix, what is over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.loading.weight_files import Opaque, read_file

# Where scripts keep weights in a checkpoint, the better known first; any other name serves, too.
NESTED = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module",
    "student", "backbone", "generator",
)  # fmt: skip
# Averages of a model's weights over training: timm's and others' names of them.
AVERAGED = re.compile(
    r"(?i:(^|[._])(ema|emamodel|averag\w*|avg|swa|teacher|shadow|polyak)([._]|$))|[a-z]EMA([._]|$)"
)
# An optimizer's state and gradients, which can have the names and shapes of the weights.
_OPTIMIZERS = re.compile(
    r"(\w+_)?(optim(izers?)?(_\w+)?|exp_(avg|inf)(_\w+)?|square_avg|avg_sq|grads?|gradients?|"
    r"momentum(_buffers?)?)",
    re.IGNORECASE,
)
DEPTH = 8  # of mappings and lists in one another
# Parts of a module's name that wrappers put in, wherever they wrap.
WRAPPERS = "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."
# What stands among weights and is none, by name: single numbers in any module, by batch norm, thop,
_COUNTERS = "num_batches_tracked", "total_ops", "total_params", "n_averaged"
# and at the top of a checkpoint or of an average.
_AT_THE_TOP = "num_updates", "initted", "step", "global_step", "decay", "epoch", "best_acc"


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a file's tensors, which may be a network's.

    Attributes:
        path: Keys of the mappings on the way to it.
        state: Name -> tensor, or another thing that a network keeps there.
        prefix: Of its names, before the network's.
    """

    path: tuple[str, ...]
    state: Mapping[str, Any]
    prefix: str = ""

    @property
    def title(self) -> str:
        """Its dotted path, which --weights-key takes."""
        return ".".join((*self.path, self.prefix)).strip(".")

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """Averages come first, as timm has them; then names that are well known."""
        names = (*self.path, *self.prefix.split("."))
        known = min((NESTED.index(name) for name in names if name in NESTED), default=len(NESTED))
        # {"ema": {"ema_model.…": …, "online_model.…": …}}: the inner name tells more.
        averaged = AVERAGED.search(self.prefix) is not None
        return not averaged, not self.is_average, known, len(self.path)

    @property
    def is_average(self) -> bool:
        """Whether these are averages of weights, by their name."""
        return any(AVERAGED.search(name) for name in (*self.path, self.prefix))


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
    contents = contents if key is None else _under(contents, key, title)
    shapes = net.state_dict()
    own = {_plain(name): name for name in shapes}
    parts = [Part(part.path, _unwrapped(part.state, own)) for part in _parts(contents)]
    if not parts:
        raise UserError(f"{title}{_without_weights(contents)}")
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
        notes.append(f"{path.name}: left out, being no weights of this model: {_some(left_out)}")
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


def _items(contents: object) -> dict[str, Any]:
    """What has a name in a mapping, or a place in a list or a tuple."""
    if isinstance(contents, Mapping):
        return {k: v for k, v in contents.items() if isinstance(k, str)}
    return dict(zip(map(str, count()), contents)) if isinstance(contents, list | tuple) else {}


def _walk(contents: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that is in a checkpoint, by its path, but what is an optimizer's."""
    yield path, contents
    if len(path) == DEPTH or (isinstance(contents, Mapping) and "param_groups" in contents):
        return
    for name, value in _items(contents).items():
        if _OPTIMIZERS.fullmatch(name) is None:
            yield from _walk(value, (*path, name))


def _parts(contents: object) -> Iterator[Part]:
    """All mappings with tensors in them by name, but an optimizer's."""
    for path, value in _walk(contents):
        if isinstance(value, Mapping) and "param_groups" not in value:
            named = {k: v for k, v in _items(value).items() if not isinstance(v, Opaque)}
            if any(isinstance(tensor, Tensor) for tensor in named.values()):
                yield Part(path, named)


def _under(contents: object, key: str, title: str) -> object:
    """What lies under a dotted path, whose last part may be a prefix of names.

    Keys can have dots in them.

    Raises:
        UserError: Nothing does, or a single tensor.
    """
    items = _items(contents)
    if not items:
        raise UserError(f"{title}: --weights-key {key}: nothing there has a name")
    if isinstance(items.get(key), Tensor):
        raise UserError(f"{title}: --weights-key {key}: a single tensor, not weights of a model")
    if key in items:
        return items[key]
    for name, value in items.items():
        if key.startswith(f"{name}.") and _items(value):
            return _under(value, key.removeprefix(f"{name}."), title)
    prefix = key.rstrip(".") + "."
    chosen = {n.removeprefix(prefix): x for n, x in items.items() if n.startswith(prefix)}
    if not chosen:
        known = dict.fromkeys(name.partition(".")[0] for name in items)
        raise UserError(f"{title}: no --weights-key {key} in it; there are {_some(known)}")
    return chosen


def _without_weights(contents: object) -> str:
    """What a file holds in place of weights."""
    opaque = {
        path: type(value).__name__ for path, value in _walk(contents) if isinstance(value, Opaque)
    }
    for path, kind in opaque.items():
        known = path and (path[-1] in NESTED or AVERAGED.search(path[-1]))
        if (known or path == ("0",)) and not kind.startswith("numpy"):
            return (
                f": holds a whole pickled model ({kind}) under {'.'.join(path)!r}, "
                "which only its own code can read; save model.state_dict() with torch.save, or "
                "hand the model over with module:function"
            )
    arrays = [path for path, kind in opaque.items() if re.match(r"numpy\..*_reconstruct$", kind)]
    if arrays:
        return (
            f": holds NumPy arrays, {'.'.join(arrays[0])} first, not tensors; save them with "
            "torch.save after torch.from_numpy"
        )
    if not isinstance(contents, Mapping):
        return f": holds {type(contents).__name__}, not a state dict"
    if not contents:
        return f": holds an empty {type(contents).__name__}"
    if "param_groups" in contents or any(
        isinstance(value, Mapping) and ("param_groups" in value or _OPTIMIZERS.fullmatch(name))
        for name, value in _items(contents).items()
    ):
        return ": holds the state of an optimizer alone, no weights of a model"
    return f": no tensors with names in it, only {_some(map(str, contents))}"


def _plain(name: str) -> str:
    """A name without what wrappers put in."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _unwrapped(state: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """A state without what wrappers put into its names.

    DataParallel's "module" goes where only without it a name is the network's.
    """
    plain = {_plain(name): value for name, value in state.items()}
    names = {}
    for name in plain:
        inner = name
        while _n_outer(inner, own) is None and ".module." in inner:
            inner = ".".join(inner.rsplit(".module.", 1))  # the outer ones may be of a prefix
        names[name] = name if inner in plain or _n_outer(inner, own) is None else inner
    return {names[name]: value for name, value in plain.items()}


def _n_outer(name: str, own: Mapping[str, str]) -> int | None:
    """How many words a name has before one of the network's, the longest; None: it has no such."""
    words = name.split(".")
    return next((i for i in range(len(words)) if ".".join(words[i:]) in own), None)


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
                f"{rest.title or 'the top'!r}: {_some(lacking)}"
            )
    return ""


def _untaken(contents: object, parts: Iterable[Part], own: Mapping[str, str]) -> str:
    """Name what is called an average and was not taken; "" where nothing is."""
    titles: dict[str, None] = {}  # in order

    def add(path: Sequence[str]) -> None:
        i = next((i for i, name in enumerate(path) if AVERAGED.search(name)), None)
        if i is not None and not any(map(_OPTIMIZERS.fullmatch, path)):
            titles[".".join(path[: i + 1])] = None

    for path, value in _walk(contents):
        if _may_be_weights(value):
            add(path[:-1] if isinstance(value, Tensor) else path)
    for part in parts:
        for name, value in part.state.items():
            if _may_be_weights(value):
                add((*part.path, *name.split(".")[:-1][: _n_outer(name, own)]))
    names = _some(map(repr, titles))
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
            if ".".join(words[i:]) in own and not any(map(_OPTIMIZERS.fullmatch, words[:i])):
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


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
