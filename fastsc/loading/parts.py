"""Where weights may lie in a checkpoint: its mappings and lists, and the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from fastsc.errors import UserError
from fastsc.loading.weight_files import Opaque

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
OPTIMIZERS = re.compile(
    r"(\w+_)?(optim(izers?)?(_\w+)?|exp_(avg|inf)(_\w+)?|square_avg|avg_sq|grads?|gradients?|"
    r"momentum(_buffers?)?)",
    re.IGNORECASE,
)
DEPTH = 8  # of mappings and lists in one another
# Parts of a module's name that wrappers put in, wherever they wrap.
WRAPPERS = "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."


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


def _items(contents: object) -> dict[str, Any]:
    """What has a name in a mapping, or a place in a list or a tuple."""
    if isinstance(contents, Mapping):
        return {k: v for k, v in contents.items() if isinstance(k, str)}
    return dict(zip(map(str, count()), contents)) if isinstance(contents, list | tuple) else {}


def walk(contents: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that is in a checkpoint, by its path, but what is an optimizer's."""
    yield path, contents
    if len(path) == DEPTH or (isinstance(contents, Mapping) and "param_groups" in contents):
        return
    for name, value in _items(contents).items():
        if OPTIMIZERS.fullmatch(name) is None:
            yield from walk(value, (*path, name))


def parts_of(contents: object, own: Mapping[str, str]) -> Iterator[Part]:
    """All mappings with tensors in them by name, but an optimizer's, without wrappers' words.

    own: A network's names: `plain` -> its own.
    """
    for path, value in walk(contents):
        if isinstance(value, Mapping) and "param_groups" not in value:
            named = {k: v for k, v in _items(value).items() if not isinstance(v, Opaque)}
            if any(isinstance(tensor, Tensor) for tensor in named.values()):
                yield Part(path, _unwrapped(named, own))


def under(contents: object, key: str, title: str) -> object:
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
            return under(value, key.removeprefix(f"{name}."), title)
    prefix = key.rstrip(".") + "."
    chosen = {n.removeprefix(prefix): x for n, x in items.items() if n.startswith(prefix)}
    if not chosen:
        known = dict.fromkeys(name.partition(".")[0] for name in items)
        raise UserError(f"{title}: no --weights-key {key} in it; there are {some(known)}")
    return chosen


def without_weights(contents: object) -> str:
    """What a file holds in place of weights."""
    opaque = {
        path: type(value).__name__ for path, value in walk(contents) if isinstance(value, Opaque)
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
        isinstance(value, Mapping) and ("param_groups" in value or OPTIMIZERS.fullmatch(name))
        for name, value in _items(contents).items()
    ):
        return ": holds the state of an optimizer alone, no weights of a model"
    return f": no tensors with names in it, only {some(map(str, contents))}"


def plain(name: str) -> str:
    """A name without what wrappers put in."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _unwrapped(state: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """A state without what wrappers put into its names.

    DataParallel's "module" goes where only without it a name is the network's.
    """
    bare = {plain(name): value for name, value in state.items()}
    names = {}
    for name in bare:
        inner = name
        while n_outer(inner, own) is None and ".module." in inner:
            inner = ".".join(inner.rsplit(".module.", 1))  # the outer ones may be of a prefix
        names[name] = name if inner in bare or n_outer(inner, own) is None else inner
    return {names[name]: value for name, value in bare.items()}


def n_outer(name: str, own: Mapping[str, str]) -> int | None:
    """How many words a name has before one of the network's, the longest; None: it has no such."""
    words = name.split(".")
    return next((i for i in range(len(words)) if ".".join(words[i:]) in own), None)


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
