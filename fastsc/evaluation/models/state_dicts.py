"""From a checkpoint to the weights of one network: which part, under which prefix, what is over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.evaluation.models.weight_files import Opaque, read_file

# Where scripts keep weights in a checkpoint, the better known first; any other name serves, too.
NESTED = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module",
    "student", "backbone", "generator",
)  # fmt: skip
# Averages of a model's weights over training: timm's and others' names of them.
AVERAGED = re.compile(r"(^|[._])(ema|averag\w*|avg|swa|teacher|shadow)([._]|$)|\wEMA$")
DEPTH = 4  # of mappings in mappings
# Parts of a module's name that wrappers put in, wherever they wrap.
WRAPPERS = "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."
# What stands among weights and is none, by name: single numbers in any module, by batch norm, thop,
_COUNTERS = "num_batches_tracked", "total_ops", "total_params", "n_averaged"
# at the top of a checkpoint or of an average,
_AT_THE_TOP = "num_updates", "initted", "step", "global_step", "decay", "epoch", "best_acc"
# and what a Lightning module has beside its network: states of metrics and of losses.
_OF_METRICS = re.compile(
    r"(\w+_)?(metric|loss|loss_fn|loss_func|criterion|criteria|acc|accuracy|top\d|acc\d|auc|auroc|"
    r"f1|f1_score|precision|recall|confmat|confusion_matrix|mean_?metric|ece|calibration_error)"
    r"(s|es|_\w+|\d*)?"
)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a file's tensors, which may be a network's.

    Attributes:
        path: Keys of the mappings on the way to it.
        state: Name -> tensor, or another thing that a network keeps there.
        prefix: Of its names in front of the network's.
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
    """

    path: Path
    key: str | None = None


def read_weights(file: WeightsFile, net: nn.Module, passed_over: tuple[str, ...] = ()) -> Fitted:
    """The weights of a network out of a file of safetensors' or torch.save's.

    They may lie in mappings, under any prefix that all of the network's names have there. Of
    several such parts the averaged one is taken, as timm does, else the best known by its name.

    Args:
        file: Nothing in it is run.
        net: Whose names are looked for; what does not fit is left to who loads the weights.
        passed_over: Beginnings of the network's names that are left out without a word.

    Raises:
        UserError: There is no such file, it is none of these, or it holds no weights or nothing
            under that key.
    """
    path, key = file
    title = f"--weights {path}"
    contents = read_file(path, title)
    parts = list(_parts(contents if key is None else _under(contents, key, title)))
    if not parts:
        raise UserError(f"{title}{_without_weights(contents)}")
    shapes = net.state_dict()
    own = {_plain(name): name for name in shapes}
    found = [
        Part(part.path, part.state, prefix) for part in parts for prefix in _prefixes(part, own)
    ]
    counts = [_n_found(part, own, shapes) for part in found]
    complete = sorted(
        (part for part, n in zip(found, counts, strict=True) if n == max(counts)),
        key=lambda part: part.rank,
    )
    best = complete[0]
    state, left_out = _renamed(best, own, [part.prefix for part in complete])
    for name, value in shapes.items():  # files from before torch 0.4.1 have none
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    notes = []
    if len(complete) > 1:
        others = ", ".join(repr(part.title or "the top") for part in complete[1:])
        average = ", an average over training" * best.is_average
        notes.append(
            f"{path.name} holds weights of this model more than once: {best.title or 'the top'!r}"
            f"{average}, was taken, not {others}; --weights-key KEY chooses"
        )
    if left_out:
        notes.append(f"{path.name}: left out, being no weights: {_some(left_out)}")
    state = {k: v for k, v in state.items() if not k.startswith(passed_over or ("\0",))}
    return Fitted(state, tuple(notes))


def _parts(contents: object, path: tuple[str, ...] = ()) -> Iterator[Part]:
    """All mappings with tensors in them by name, but an optimizer's."""
    if not isinstance(contents, Mapping) or "param_groups" in contents or len(path) > DEPTH:
        return
    named = {k: v for k, v in contents.items() if isinstance(k, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        yield Part(path, {k: v for k, v in named.items() if not isinstance(v, Opaque)})
    for name, value in named.items():
        yield from _parts(value, (*path, name))


def _under(contents: object, key: str, title: str) -> object:
    """What lies under a dotted path, whose last part may be a prefix of names.

    Keys can have dots in them.

    Raises:
        UserError: Nothing does.
    """
    if not isinstance(contents, Mapping):
        raise UserError(f"{title}: --weights-key {key}: nothing there has a name")
    names = [name for name in contents if isinstance(name, str)]
    if key in names and not isinstance(contents[key], Tensor):
        return contents[key]
    for name in names:
        if key.startswith(f"{name}.") and isinstance(contents[name], Mapping):
            return _under(contents[name], key.removeprefix(f"{name}."), title)
    prefix = key.rstrip(".") + "."
    found = {n.removeprefix(prefix): contents[n] for n in names if n.startswith(prefix)}
    if not found:
        known = dict.fromkeys(name.partition(".")[0] for name in names)
        raise UserError(f"{title}: no --weights-key {key} in it; there are {_some(known)}")
    return found


def _without_weights(contents: object) -> str:
    """What a file holds in place of weights."""
    if not isinstance(contents, Mapping):
        return f": holds {type(contents).__name__}, not a state dict"
    for name, value in contents.items():
        if isinstance(value, Opaque) and (name in NESTED or AVERAGED.search(str(name))):
            return (
                f": holds a whole pickled model ({type(value).__name__}) under {str(name)!r}, "
                "which only its own code can read; save model.state_dict() with torch.save, or "
                "hand the model over with module:function"
            )
    values = [contents, *contents.values()]
    if any(isinstance(value, Mapping) and "param_groups" in value for value in values):
        return ": holds the state of an optimizer alone, no weights of a model"
    return f": no tensors with names in it, only {_some(map(str, contents))}"


def _plain(name: str) -> str:
    """A name without what wrappers put in."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _prefixes(part: Part, own: Mapping[str, str]) -> list[str]:
    """What stands in front of the network's names in a part: where most of them are found.

    Where none is, what stands in front of all names by the wrappers' custom, so that other names
    can be told from the rest.
    """
    found: Counter[str] = Counter()
    for name in map(_plain, part.state):
        words = name.split(".")
        for i in range(len(words)):
            if ".".join(words[i:]) in own:
                found[".".join(words[:i]) + "." * (i > 0)] += 1
    most = max(found.values(), default=0)
    if 2 * most > len(own):
        return [prefix for prefix, n in found.items() if n == most]
    names = [_plain(n) for n, x in part.state.items() if not _is_no_weight(_plain(n), x, "")]
    shared = ""
    for wrapper in ("module.", "model.", "net."):
        if names and all(name.startswith(shared + wrapper) for name in names):
            shared += wrapper
    return [shared]


def _n_found(part: Part, own: Mapping[str, str], shapes: Mapping[str, Any]) -> int:
    """How many of the network's tensors a part has, batch norm's counters apart.

    Numbers of outputs may differ, which are the first axis of a classifier's weights.
    """
    found = {_plain(name): value for name, value in part.state.items()}
    return sum(
        _shape(found.get(part.prefix + name))[1:] == _shape(shapes[own[name]])[1:]
        for name in own
        if part.prefix + name in found and name.rpartition(".")[2] not in _COUNTERS
    )


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _renamed(
    part: Part, own: Mapping[str, str], prefixes: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """A part by the network's own names, and what of it is left out as no weights of it.

    prefixes: Of whole copies of the network's names, this part's among them.
    """
    state: dict[str, Any] = {}
    left_out: list[str] = []
    others = [prefix for prefix in prefixes if prefix != part.prefix]
    for name, value in part.state.items():
        plain = _plain(name)
        bare = plain.removeprefix(part.prefix)
        if plain.startswith(part.prefix) and bare in own:
            state[own[bare]] = value
        elif not isinstance(value, Tensor) or (others and _is_copy(plain, others, own)):
            continue
        elif _is_no_weight(plain, value, part.prefix):
            left_out.append(plain)
        else:
            state[bare] = value
    return state, left_out


def _is_copy(name: str, prefixes: Iterable[str], own: Mapping[str, str]) -> bool:
    return any(name.startswith(prefix) and (prefix or name in own) for prefix in prefixes)


def _is_no_weight(name: str, value: object, prefix: str) -> bool:
    *path, last = name.split(".")
    one = isinstance(value, Tensor) and value.numel() == 1
    if one and (last in _COUNTERS or (not path and last in _AT_THE_TOP)):
        return True
    if prefix and name.startswith(prefix):
        return False  # of the network itself
    outer = prefix.split(".")
    while path and outer and path[0] == outer[0]:
        path, outer = path[1:], outer[1:]
    return bool(path) and _OF_METRICS.fullmatch(path[0]) is not None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
