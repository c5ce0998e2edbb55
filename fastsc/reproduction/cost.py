"""What a sweep costs before it is run: in images and pairs, and in hours at measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from fastsc.reproduction.records import Record
from fastsc.reproduction.runner import Task
from fastsc.reproduction.study import Study


@dataclass(frozen=True)
class Speed:
    """Unique images a second, of one core or of one GPU.

    Attributes:
        single, pair: With cross-entropy on clean views alone, and with both views.
        where: The machine, and whose figure it is.
        model: The network that was trained.
        by_core: Whether more cores are so many times as fast.
    """

    single: float
    pair: float
    where: str
    model: str
    by_core: bool = False


def cells_of(
    tasks: Sequence[Task],
    n_images: int,
    speeds: Sequence[Speed],
    cores: int = 1,
    *,
    zero: str = "0",
    unknown: str = "?",
) -> list[str]:
    """Images seen with one view and with two, and hours of training at each speed.

    Args:
        tasks: Runs, each on `n_images` training images.
        speeds: Those of a core are multiplied by `cores`.
        zero: In place of no images.
        unknown: Where the speed is of none of the networks; of some of them +.
    """
    seen = []
    for config in (task.config for task in tasks):
        steps = config.optim.epochs * (n_images // config.optim.batch_size)  # whole batches
        steps = min(steps, config.optim.max_steps or steps)
        seen.append((config.method.plain, steps * config.optim.batch_size))
    cells = [f"{sum(n for plain, n in seen if plain is one):,}" for one in (True, False)]
    cells = [zero if cell == "0" else cell for cell in cells]
    for speed in speeds:
        known = [task.config.model.model == speed.model for task in tasks]
        rates = [speed.single if plain else speed.pair for plain, _ in seen]
        spent = sum(n / rate for (_, n), rate, same in zip(seen, rates, known) if same) / 3600
        text = hours(spent / (cores if speed.by_core else 1))
        cells.append(text if all(known) else f"{text} +" if spent else unknown)
    return cells


def measured_speed(records: Iterable[Record], model: str, resolution: int) -> Speed | None:
    """Median rates per core or GPU of records of such networks; None where there are not both.

    Of records of several machines those of the one with most.
    """
    rates: dict[tuple[str, bool], dict[bool, list[float]]] = {}
    for record in records:
        options, made = record.options, record.made
        same = (options["model"], options["resolution"]) == (model, resolution)
        if record.trial or not same or not record.pairs_per_s:
            continue
        on_gpu, hardware = str(made["device"]).startswith("cuda"), made["hardware"]
        where = hardware["gpus"][0] if on_gpu else f"a core of {hardware['cpu']}"
        by_kind = rates.setdefault((where, on_gpu), {True: [], False: []})
        by_kind[record.plain].append(record.pairs_per_s / (1 if on_gpu else made["threads"]))
    whole = {place: rate for place, rate in rates.items() if rate[True] and rate[False]}
    if not whole:
        return None
    where, on_gpu = max(whole, key=lambda place: sum(map(len, whole[place].values())))
    single, pair = (median(whole[where, on_gpu][plain]) for plain in (True, False))
    return Speed(single, pair, f"{where}, measured", model, by_core=not on_gpu)


def speeds_of(study: Study, records: Iterable[Record], tasks: Iterable[Task]) -> list[Speed]:
    """Of the tasks' networks: those that records tell, then the published ones."""
    records = list(records)
    models = dict.fromkeys((task.config.model.model, task.config.data.resolution) for task in tasks)
    measured = [measured_speed(records, *model) for model in models]
    # A pair is two images to a network that its loader does not hold up.
    published = [
        Speed(n := rate.images_per_s, n / 2, f"one {rate.machine}; {rate.source}", rate.model)
        for rate in study.rates
        if rate.model in {model for model, _ in models}
    ]
    return [speed for speed in measured if speed is not None] + published


def cost_table(
    study: Study, tasks: Sequence[Task], n_images: int, speeds: Sequence[Speed], cores: int
) -> Table:
    """One row per arm with what is left to do, and the sum in hours of each machine.

    cores: that this machine has, which measured rates of a core are multiplied by.
    """
    title = f"{study.title}: what is left to run, on {n_images:,} training images"
    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    headings = [f"{cores} × {speed.where}" if speed.by_core else speed.where for speed in speeds]
    for heading in ("runs", "done", "to ask", "images", "pairs", *headings):
        table.add_column(heading, justify="right")

    def row(name: str, of: Sequence[Task]) -> list[str]:
        left = [task for task in of if task.record is None]
        ask = sum(bool(task.questions) and not task.done for task in of)
        counts = map(str, (len(of), sum(task.done for task in of), ask))
        return [name, *counts, *cells_of(left, n_images, speeds, cores)]

    for arm in dict.fromkeys(task.arm.name for task in tasks):
        table.add_row(*row(arm, [task for task in tasks if task.arm.name == arm]))
    table.add_section()
    table.add_row(*row("all", tasks))
    if not speeds:
        table.caption = "no hours: no run of these networks has told its rate yet"
    elif len({task.config.model.model for task in tasks} - {s.model for s in speeds}):
        table.caption = "?, +: a rate is known of another network only"
    return table


def hours(value: float) -> str:
    """12 min, 3.4 h, 250 h."""
    if value < 1:
        return f"{60 * value:.0f} min"
    return f"{value:.1f} h" if value < 100 else f"{value:,.0f} h"
