"""The page on bias: colour or shape, and which classes depend on which kind of change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastsc.datasets.colormnist import FOLDERS
from fastsc.evaluation.questions.bias.axes import LEAST, RATE, Dependence, What
from fastsc.evaluation.questions.bias.question import Bias
from fastsc.evaluation.report.bias_charts import (
    MARK,
    OVERALL,
    PROBES,
    Named,
    class_charts,
    colour_charts,
)
from fastsc.evaluation.report.parts import (
    Card,
    Cell,
    Gallery,
    Question,
    Said,
    Section,
    Shot,
    Table,
)
from fastsc.evaluation.report.pictures import data_uri, gallery
from fastsc.evaluation.report.tables import EMPTY, tables, verdicts
from fastsc.evaluation.report.words import (
    PERCENT,
    PLAIN,
    POINTS,
    SPACE,
    Unit,
    interval_of,
    listed,
    number,
    spoken,
    strength_text,
    value_of,
)
from fastsc.evaluation.results.statistics import Estimate
from fastsc.evaluation.views import KINDS

NAMED = 4  # classes that a sentence names for a kind
MOST_CLASSES = 100  # of the table
UNITS: dict[What, Unit] = {"moved": PLAIN, "flipped": PERCENT}


def section(question: Question) -> Section:
    """The whole section."""
    named: Named = [
        (asked.slot, asked.model.name, asked.answer)
        for asked in question.asked
        if isinstance(asked.answer, Bias)
    ]
    return Section(
        "bias",
        "Bias",
        "Does the model go by colour or by shape, and which classes depend on which change?",
        tuple(
            Said(
                model,
                slot,
                (*_accuracy(answer), *_probes(answer), *_classes(answer, "flipped")),
                (*_overall(answer), *_classes(answer, "moved"), *_tested(answer)),
            )
            for slot, model, answer in named
        ),
        _beside(named),
        verdicts(question, _compared(named)),
        tuple(_galleries(question, named)),
        (*colour_charts(question, named), *class_charts(question, named)),
        (*tables(question), *_class_table(named)),
    )


def _compared(named: Named) -> dict[str, str]:
    """The figures by which models are compared: the flips where there are no others."""
    colours = {
        "gap": "Aligned less reversed colours",
        "accuracy/random": "Right in random colours",
        "probe/colour": "Colour read from the features",
        "probe/shape": "Shape read from the features",
    }
    if any(set(colours) & set(answer.estimates) for _, _, answer in named):
        return colours
    return {f"axis_flips/{kind}": f"Flips under {kind} alone" for kind in KINDS}


# --- in words ------------------------------------------------------------------------------------


def _beside(named: Named) -> str:
    said = []
    if any("gap" in answer.estimates for _, _, answer in named):
        said.append(
            "A classifier of shapes reads the three colourings equally well, one of colours "
            f"100{SPACE}%, 10{SPACE}% and 0{SPACE}%."
        )
    if any("probe/colour" in answer.estimates for _, _, answer in named):
        said.append(f"A probe that guesses is right for 10{SPACE}%.")
    if any(answer.dependence for _, _, answer in named):
        said.append(
            "A class is named for a kind of change only if it is beyond what chance explains "
            "among so many classes."
        )
    return " ".join(said)


def _accuracy(answer: Bias) -> Iterator[str]:
    if "gap" in answer.estimates:
        aligned, random, back = (
            f"{value_of(found, PERCENT)} ({interval_of(found, PERCENT)})"
            for found in (answer[f"accuracy/{folder}"] for folder in FOLDERS)
        )
        yield (
            f"Of test digits in their class’s colour {aligned} are read right, in random colours "
            f"{random}, in another class’s colour {back}: the colour is worth "
            f"{spoken(answer['gap'], POINTS)}."
        )


def _probes(answer: Bias) -> Iterator[str]:
    if set(PROBES) <= set(answer.estimates):
        colour, shape = (spoken(answer[f"probe/{what}"], PERCENT) for what in ("colour", "shape"))
        pixels = [value_of(answer[f"pixels/{what}"], PERCENT) for what in ("colour", "shape")]
        yield (
            f"A linear probe reads the colour from the features of {colour} and the shape of "
            f"{shape}; from raw pixels {pixels[0]} and {pixels[1]}."
        )


def _overall(answer: Bias) -> Iterator[str]:
    parts = [
        f"{kind} {strength_text(kind, answer.strengths[KINDS.index(kind)])} flips "
        f"{value_of(flips, PERCENT)} of the predictions ({interval_of(flips, PERCENT)}) and moves "
        f"the representation by {value_of(moved, PLAIN)} of the distance between images"
        for kind in answer.kinds
        for flips, moved in [(answer[f"axis_flips/{kind}"], answer[f"axis/{kind}"])]
    ]
    if parts:
        n = answer[f"axis/{answer.kinds[0]}"].n
        most = max(one.n for one in answer.dependence)
        yield f"Alone, {listed(parts)} (n{SPACE}={SPACE}{n}, up to {most} a class)."


def _classes(answer: Bias, what: What) -> Iterator[str]:
    """Which classes stand out, kind by kind; that none does."""
    if not answer.dependence:
        return
    unit, parts = UNITS[what], []
    for kind in answer.kinds:
        found = [
            one
            for one in answer.dependence
            if one.stands_out and (one.what, one.kind) == (what, kind)
        ]
        if found:
            found.sort(key=lambda one: (-one.value, one.class_name))
            names = [f"{one.class_name} ({_figure(one, unit)})" for one in found[:NAMED]]
            if (more := len(found) - NAMED) > 0:
                names.append(f"{more} more")
            overall = value_of(answer[f"{OVERALL[what]}/{kind}"], unit)
            verb = "flips" if what == "flipped" else "moves"
            parts.append(f"{kind} {verb} {listed(names)}, against {overall} over all classes")
    whose = "prediction depends on" if what == "flipped" else "representation moves with"
    if parts:
        yield (
            f"Some classes’ {whose} one kind of change more than the others’ does, beyond what "
            f"chance explains: {'; '.join(parts)}."
        )
    else:
        classes = len({one.class_name for one in answer.dependence})
        yield (
            f"No class’s {whose} one kind of change more than the others’ does, beyond what chance "
            f"explains ({classes} classes)."
        )


def _tested(answer: Bias) -> Iterator[str]:
    tests = len(answer.dependence)
    if tests:
        counts = [one.n for one in answer.dependence]
        low, high = min(counts), max(counts)
        images = f"{low}" if low == high else f"{low} to {high}"
        yield (
            f"Each class with at least {LEAST} images was compared with random images of all "
            f"classes by a permutation test ({images} images a class, "
            f"{number(tests, 0)} comparisons), corrected after Benjamini and Hochberg: of the "
            f"classes that are named, {100 * RATE:.0f}{SPACE}% at most are expected to be named "
            "by chance."
        )


def _figure(one: Dependence, unit: Unit) -> str:
    return value_of(_estimate(one), unit)


def _estimate(one: Dependence) -> Estimate:
    return Estimate(one.value, one.low, one.high, one.n, 0, "bootstrap")


# --- pictures and the table ----------------------------------------------------------------------


def _galleries(question: Question, named: Named) -> Iterator[Gallery]:
    if cards := tuple(_digit_cards(named)):
        yield Gallery(
            "Digits whose colour lies",
            "Some test digits, not chosen by how they are read: each in its class’s colour, in "
            "any, and in another class’s, and what "
            + ("the model reads." if question.alone else "each model reads."),
            cards,
        )
    for asked in question.asked:
        found = gallery(
            question,
            asked,
            "Classes that depend on one kind of change",
            "An image of a class that stands out, and the same with one kind changed alone.",
        )
        if found:
            yield found


def _digit_cards(named: Named) -> Iterator[Card]:
    """A card a digit, with what all models read in it."""
    read = [(model, {one.name: one for one in answer.digits}) for _, model, answer in named]
    for digit in {digit.name: digit for _, _, answer in named for digit in answer.digits}.values():
        shots = []
        for folder in FOLDERS:
            said = ", ".join(
                f"{model}: {known[digit.name].predicted[folder]}" if len(named) > 1
                else f"read as {known[digit.name].predicted[folder]}"
                for model, known in read if digit.name in known
            )  # fmt: skip
            pixels, caption = digit.pixels[folder], f"{folder} – {said}"
            alt = f"{digit.name}, {caption}"
            shots.append(Shot(data_uri(pixels), alt, caption, max(pixels.shape[:2])))
        yield Card(tuple(shots), digit.name, ())


def _class_table(named: Named) -> Iterator[Table]:
    """The class-by-axis table: a row a class and kind, of at most MOST_CLASSES classes."""
    every = {
        (one.class_name, one.kind, one.what, slot): one
        for slot, _, answer in named
        for one in answer.dependence
    }
    if not every:
        return
    names = _most_telling([one for _, _, answer in named for one in answer.dependence])
    kept = sorted(names[:MOST_CLASSES])
    rows = []
    for name in kept:
        for kind in KINDS:
            cells = [Cell(name), Cell(kind)]
            for slot, _, _ in named:
                pair = [every.get((name, kind, what, slot)) for what in ("moved", "flipped")]
                cells += _cells(pair)
            if any(cell is not EMPTY for cell in cells[2:]):
                rows.append(tuple(cells))
    caption = "Class by class, each kind alone"
    if len(kept) < len(names):
        caption += f": {len(kept)} of {len(names)} classes, those that stand out or have the most"
    yield Table(
        caption,
        ("Class", "Kind", *["Moves", "95 % interval", "Flips", "95 % interval", "n"] * len(named)),
        tuple(rows),
        (("", 2), *((model, 5) for _, model, _ in named)),
    )


def _cells(pair: Sequence[Dependence | None]) -> list[Cell]:
    cells: list[Cell] = []
    n = None
    for one in pair:
        if one is None:
            cells += [EMPTY, EMPTY]
            continue
        found, unit, n = _estimate(one), UNITS[one.what], one.n
        sort = None if one.value != one.value else one.value
        cells.append(Cell(value_of(found, unit) + MARK * one.stands_out, sort))
        cells.append(Cell(interval_of(found, unit), sort))
    return [*cells, EMPTY if n is None else Cell(str(n), n)]


def _most_telling(found: Sequence[Dependence]) -> list[str]:
    """Every class once: those that stand out, then by the least p."""
    order = sorted(found, key=lambda one: (not one.stands_out, one.p, one.class_name))
    return list(dict.fromkeys(one.class_name for one in order))
