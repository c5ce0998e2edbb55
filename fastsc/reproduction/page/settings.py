"""The page's parts about the grid's other settings: groups of arms, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from fastsc.reproduction.claims import RELATIVE, TOP1, Measure, Records, effect_of, number_of, over
from fastsc.reproduction.page import drawn
from fastsc.reproduction.page.tables import method_of, present, relative_of
from fastsc.reproduction.page.words import (
    NONE,
    Part,
    Shown,
    count,
    effect,
    listed,
    percent,
    signed,
    table,
)
from fastsc.reproduction.study import Study

Show = Callable[[str, drawn.Picture | None], tuple[Shown, ...]]


def over_alpha(study: Study, runs: Records, shown: Show) -> Iterator[Part]:
    """Figure 5: accuracy and continuity over alpha."""
    names = present(study, runs, study.groups.get("alpha", ()))
    if len(names) < 3 or names[0] != study.groups["alpha"][0]:
        return
    base = names[0]
    yield Part(
        "Accuracy and DS over alpha (the paper's figure 5)",
        f"The paper's claim: accuracy holds over a wide range of alpha while DS falls. All arms "
        f"train as long as `{base}`, which has no constraint.",
        _beside(study, runs, names, base),
        shown("alpha", drawn.over_alpha(study, runs, names)),
    )


def groups(study: Study, runs: Records, shown: Show) -> Iterator[Part]:
    """The rest of the grid: groups of arms, each beside its first."""
    for name, (title, words) in SECTIONS.items():
        names = present(study, runs, study.groups.get(name, ()))
        if len(names) < LEAST.get(name, 3):
            continue
        if name != "target" and names[0] != study.groups[name][0]:
            continue  # without its base a group compares nothing
        if name == "target":
            yield Part(
                title, f"{words} {_starts(runs, names)}".strip(), _targets(runs, names),
                shown(name, drawn.targets(runs, names)),
            )  # fmt: skip
            continue
        picture = drawn.collapse(study, runs, names) if name == "collapse" else None
        yield Part(title, words, _beside(study, runs, names, names[0]), shown(name, picture))


LEAST = {"target": 1, "longer": 2, "collapse": 2}  # arms that make a part
SECTIONS = {
    "kinds": (
        "Kinds of DS, and other consistency losses",
        "Each at one alpha: the papers' own for Jensen-Shannon and logit pairing, the others' were "
        "chosen in earlier trials. Jensen-Shannon is AugMix's loss with one augmented view (equal "
        "to timm's), logit pairing is Kannan et al.'s; all on the same step. Beside the first row, "
        "which has no constraint.",
    ),
    "target": (
        "The constraint as a constraint",
        "`--ds-target X` asks for a ds_relative; alpha is found by dual ascent, from different "
        "starting values.",
    ),
    "study": (
        "What the method's options do",
        "The default with one option changed, each beside it; `both` has no constraint.",
    ),
    "longer": (
        "In a longer training",
        "Twice the epochs of the arms of the same label above. Beside the first row.",
    ),
    "collapse": (
        "Collapse",
        "Distances can be cheated: features at one point have DS 0, and features on one line have "
        "no angle between them. Such a network knows nothing. Beside the first row, which has no "
        "constraint; all train for a fifth of the epochs.",
    ),
}
CHANGE = Measure("val/top1", "top-1", "higher", "difference")  # two-sided, unlike the claim


def _beside(study: Study, runs: Records, names: Sequence[str], base: str) -> str:
    """A row an arm: figures, and effects beside the base over common seeds."""
    rows = []
    for name in names:
        top1 = over(runs, name, TOP1.key)
        left = min(record.left for (arm, _), record in runs.items() if arm == name)
        cells = [f"{study.arms[name].label} (`{name}`)", str(top1.n), percent(top1)]
        cells += [relative_of(runs, name), f"{100 * left:.0f} %"]
        for measure in (CHANGE, RELATIVE):
            found = None if name == base else effect_of(runs, measure, name, base)
            cells.append(NONE if found is None else effect(measure, found.found))
            if found is not None and found.found.n < max(top1.n, over(runs, base, TOP1.key).n):
                cells[-1] += f" in {count(found.found.n, 'common seed')}"
        rows.append(cells)
    return table(
        ["arm", "seeds", "top-1 ↑", "ds_relative ↓", "spread left",
         f"top-1 less `{base}`’s", f"ds_relative over `{base}`’s"],
        rows,
    )  # fmt: skip


def recommended(study: Study, runs: Records) -> Iterator[Part]:
    """What the default is, why, and what of the grid is better in something."""
    if study.default not in present(study, runs) or not study.reason:
        return
    found: dict[str, list[str]] = {}
    names = dict.fromkeys(name for group in ("alpha", "kinds", "study") if group in study.groups
                          for name in study.groups[group] if name != study.default)  # fmt: skip
    for name in present(study, runs, names):
        effects = [effect_of(runs, measure, name, study.default) for measure in (CHANGE, RELATIVE)]
        if effects[0] is None:
            continue
        if effects[1] is None:
            found.setdefault("collapsed", []).append(f"`{name}`")
            continue
        top1, relative = (one.found.value for one in effects if one is not None)
        side = SIDES[relative < 1, top1 > 0]
        n = effects[0].found.n
        text = f"`{name}` ({signed(100 * top1, 1)}, ×{relative:.2f}, n = {n})"
        found.setdefault(side, []).append(text)
    compared = "; ".join(
        f"{side}: {listed(found[side])}" if side in found else f"{side}: none"
        for side in (*SIDES.values(), *(["collapsed"] if "collapsed" in found else []))
    )
    words = f"`{study.default}` is {method_of(study, study.default)}. {study.reason}"
    if found:
        words += (
            "\n\nThe grid’s other settings beside it, with top-1 in points and ds_relative as a "
            f"ratio, by their means over n common seeds, and one shows little; {compared}."
        )
    yield Part("The recommended default, and why", words)


SIDES = {  # by whether an arm is more continuous and more accurate
    (True, True): "better in both",
    (True, False): "more continuous, not more accurate",
    (False, True): "more accurate, not more continuous",
    (False, False): "better in neither",
}


def _starts(runs: Records, names: Sequence[str]) -> str:
    """What the starting alpha costs: top-1 of runs that end at the same target differs."""
    by_target: dict[float, list[float]] = {}
    for (arm, _), record in runs.items():
        if arm in names:
            top1 = by_target.setdefault(float(record.options["ds_target"]), [])
            top1.append(100 * number_of(record, TOP1.key))
    apart = [max(top1) - min(top1) for top1 in by_target.values() if len(top1) > 1]
    if not apart:
        return ""
    return (
        "The same target is reached, but not the same network: with the alpha that a run starts "
        f"from top-1 differs by {min(apart):.1f} to {max(apart):.1f} points."
    )


def _targets(runs: Records, names: Sequence[str]) -> str:
    """A row a run: what was asked for, where alpha began, went and ended, what was reached."""
    rows = []
    for arm, seed in ((name, seed) for name in names for of, seed in sorted(runs) if of == name):
        record = runs[arm, seed]
        target = float(record.options["ds_target"])
        alphas = [x for x in record.curve["alpha"] if x is not None]
        found = number_of(record, RELATIVE.key)
        rows.append([
            f"`{arm}`, seed {seed}", f"{target:g}", f"{float(record.options['alpha']):g}",
            f"{min(alphas):.2g} to {max(alphas):.4g}", f"{alphas[-1]:.3g}",
            relative_of({(arm, seed): record}, arm),
            NONE if math.isnan(found) else f"{signed(100 * (found / target - 1), 0)} %",
            f"{100 * number_of(record, TOP1.key):.1f}",
        ])  # fmt: skip
    return table(
        ["run", "target", "alpha at first", "on the way", "at last", "ds_relative", "off by",
         "top-1"],
        rows,
    )  # fmt: skip
