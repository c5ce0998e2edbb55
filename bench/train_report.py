"""What bench.train says of its trainings: rows, the table, and the lines that matter."""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.common import Result, Row, Skipped, report, summarize
from bench.train_rows import PEERS, SMALL_MODEL, SMALL_SIZE, Training
from bench.train_runs import Speeds


@dataclass
class Seen:
    """What one row's processes gave, a round each."""

    speeds: list[Speeds] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def by_round(self) -> list[float]:
        return [statistics.median(speeds.rates) for speeds in self.speeds]


def summaries(training: Training, seen: Seen, seconds: float) -> list[Result] | Skipped:
    """The row of the steps, and those of the whole process and of the waits."""
    name = training.name
    if seen.failed or not seen.speeds:
        return Skipped(name, seen.failed or f"the {seconds:g} seconds were over")
    rates = [rate for speeds in seen.speeds for rate in speeds.rates]
    waits = [100 * wait for speeds in seen.speeds for wait in speeds.waits]
    whole = [training.setting.images / s for s in seen.seconds]
    return [
        summarize(name, rates, "images/s"),
        summarize(name.replace("train/", "run/", 1), whole, "images/s"),
        summarize(name.replace("train/", "wait/", 1), waits, "%"),
    ]


def ratio(seen: dict[str, Seen], name: str, base: str, factor: float = 1.0) -> list[float]:
    """Of two rows' rates, in every round that has both; times `factor`."""
    pairs = zip(seen[name].by_round, seen[base].by_round, strict=False)
    return [factor * mine / other for mine, other in pairs]


def goals(seen: dict[str, Seen]) -> list[str]:
    """The lines that matter: ours beside the faster peer and beside the ideal."""

    def measured(name: str) -> bool:
        return name in seen and bool(seen[name].speeds)

    def spread(what: str, values: list[float]) -> str:
        middle, low, high = statistics.median(values), min(values), max(values)
        return f"{what}: {middle:.2f} (rounds {low:.2f} to {high:.2f})"

    lines = []
    for suffix, regime in (("", "compute"), (f"-{SMALL_SIZE}", f"{SMALL_SIZE} px")):
        single, pair = f"train/fastsc/single{suffix}", f"train/fastsc/pair{suffix}"
        peers = [f"train/{peer}/single{suffix}" for peer in PEERS]
        peers = [name for name in peers if measured(name)]
        if measured(single) and peers:
            faster = [max(rates) for rates in zip(*(seen[p].by_round for p in peers), strict=False)]
            rates = zip(seen[single].by_round, faster, strict=False)
            names = ", ".join(peer.split("/")[1] for peer in peers)
            what = f"{regime}: single view beside the faster of {names}"
            lines.append(spread(what, [mine / other for mine, other in rates]))
        if measured(single) and measured(pair):
            what = f"{regime}: pairs beside half of the single-view rate"
            lines.append(spread(what, ratio(seen, pair, single, 2.0)))
        for name in filter(measured, (single, pair)):
            waits = [wait for speeds in seen[name].speeds for wait in speeds.waits]
            lines.append(f"{regime}: loader wait of {name}: {statistics.median(waits):.1%}")
    return lines


def tell(
    wanted: Sequence[Training | Skipped],
    seen: dict[str, Seen],
    commands: dict[str, str],
    options: argparse.Namespace,
) -> None:
    """The table, the file, and the lines that matter."""
    rows, more = list[Row](), list[Row]()
    columns = {heading: dict[str, str]() for heading in ("run", "wait", "beside")}
    for row in wanted:
        if isinstance(row, Skipped):
            rows.append(row)
            continue
        found = summaries(row, seen[row.name], options.seconds)
        if isinstance(found, Skipped):
            rows.append(found)
            continue
        steps, whole, waits = found
        rows.append(steps)
        more += [whole, waits]
        columns["run"][row.name] = f"{whole.median:,.0f}/s"
        columns["wait"][row.name] = f"{waits.median:.1f} %"
        if row.against in seen and (values := ratio(seen, row.name, row.against)):
            base = row.against.removeprefix("train/")
            columns["beside"][row.name] = f"{statistics.median(values):.2f}× {base}"
    lines = goals(seen)
    given = {peer: getattr(options, f"{peer}_script") for peer in PEERS}
    small = {"model": SMALL_MODEL, "size": SMALL_SIZE, "batch": options.small_batch}
    report(
        rows,
        f"train · {options.model}, {options.size} px, {options.batch} images",
        options,
        columns=columns,
        more=more,
        extra={
            **{name: getattr(options, name) for name in ("model", "size", "batch", "steps")},
            f"rows_{SMALL_SIZE}": small | {"steps": 2 * options.steps},
            "workers": options.workers,
            "threads": options.threads,
            "commands": commands,
            "scripts_sha256": {
                peer: hashlib.sha256(path.read_bytes()).hexdigest()
                for peer, path in given.items()
                if path is not None
            },
            "rounds": {name: mine.by_round for name, mine in seen.items()},
            "goals": lines,
        },
    )
    print("\n".join(lines))
