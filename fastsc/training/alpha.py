"""The weight alpha of DS: as it was asked for, or what brings ds_relative to a wanted value.

The latter takes DS as a constraint:

    minimize CE  subject to  ds_relative = target

The constraint's Lagrangian is CE + alpha (DS - …), and dual ascent on it raises alpha where DS is
above its target and lowers it below. Here alpha moves in its logarithm, by the logarithm of the
ratio, so that neither has a unit and the same constants serve every kind of DS:

    gap        <- SMOOTHING gap + (1 - SMOOTHING) log(ds_relative / target)
    log(alpha) <- log(alpha) + ASCENT gap + DAMPING (gap - gap before), by at most LIMIT

The moving average takes out a batch's noise, as in GECO (Rezende and Viola, arXiv 1810.00597,
algorithm 1). The second term is the proportional one of Stooke, Achiam and Abbeel, "Responsive
safety in reinforcement learning by PID Lagrangian methods" (arXiv 2007.03964): ascent alone swings
about its target, since features answer some hundred steps late.

ds_relative is the training batch's. Validation's, of other images in eval mode, wanders about it
while the learning rate is high, by up to 13 %, and was 0.98 to 1.01 times it at the end of six runs
on CIFAR-100, of 3 to 15 epochs: where the one is brought, the other ends.
"""

from __future__ import annotations

import math
from typing import Any

from fastsc.config import STEERED_ALPHA, MethodConfig
from fastsc.errors import UserError
from fastsc.training.collapse import Figures, Spread

EVERY = 10  # steps from one update to the next, at most
UPDATES = 50  # of a bound's multiplier in a run, at least, where it has so many steps
LOWEST, HIGHEST = STEERED_ALPHA
SMOOTHING = 0.9  # a batch's log ds_relative has a standard deviation of 0.07, ten updates' 0.016
# ds_relative falls by a tenth to a third of what alpha rises, in logarithms: the loop closes in 100
# to 300 steps. The ratio of both is the features' delay, 20 updates, which it cancels.
ASCENT, DAMPING = 0.4, 8.0
LIMIT = 0.2  # most that log(alpha) moves in an update: a factor of 7 in 100 steps
MOST_GAP = 1.0  # one batch's; zero or infinity says no more than far off

GUARD = 0.25  # of the running maximum; CollapseWatch warns at a tenth
RECOVERED = 0.35  # of it: an episode is over
RETREAT = 0.5  # alpha's factor at each update of an episode; and its ceiling's, after one
WHOLE, RELIEF = 0.5, 1.02  # of it: then the ceiling rises again, by this factor an update
# The maximum may be that of untrained weights, whose scale means nothing: after so many updates
# that of those behind the first few counts.
SETTLED, FRESH = 20, 100
LONG = 50  # updates in a row at a limit
TOLERANCE = 0.1  # of the target, at the end


def near(ds_relative: float, target: float) -> bool:
    """Whether a ds_relative is within a tenth of its target."""
    return abs(math.log(max(ds_relative, 1e-12) / target)) <= math.log1p(TOLERANCE)


class Alpha:
    """The weight of DS in each step: constant, or rising over the first part of the run."""

    def __init__(self, config: MethodConfig, steps_per_epoch: int, epochs: int) -> None:
        self._whole, warmup = config.alpha, config.alpha_warmup_epochs
        self._warmup = round((epochs if warmup is None else warmup) * steps_per_epoch)

    def alpha(self, step: int) -> float:
        """That of step 0, 1, …; whole with the last step of the warm-up, by default the run's."""
        return self._whole * min(1.0, (step + 1) / self._warmup) if self._warmup else self._whole

    def rate(self) -> float:
        """The multiple of the learning rate in the next step."""
        return 1.0

    @property
    def figures(self) -> Figures:
        """What the log has of it besides its value."""
        return {}

    def observes(self, step: int) -> bool:
        """Whether the figures of step 0, 1, … are to be shown to it, logged or not."""
        del step
        return False

    def observe(self, figures: Figures) -> str | None:
        """Takes the figures of a step, the same on all ranks; what there is to warn of."""
        del figures
        return None

    def missed(self, ds_relative: float | None) -> str | None:
        """A line about what it should have reached by the end of training, and did not."""
        del ds_relative
        return None

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: Any) -> None:
        pass


class Multiplier(Alpha):
    """alpha from its start on, steered by figures of every tenth step.

    Attributes:
        value: alpha in the next step.
        target: The wanted ds_relative.
        gap: The smoothed log(ds_relative / target); 0 before the first update.
        every: Steps from one update to the next.

    Args:
        alpha: The start, from LOWEST to HIGHEST.
        target: Above 0.
    """

    option, figure, sign = "--ds-target", "ds_relative", 1

    def __init__(self, alpha: float, target: float) -> None:
        self.value, self.target, self.gap = alpha, target, 0.0
        self.every, self._limit = EVERY, LIMIT
        self._ceiling = HIGHEST
        self._updates = self._pinned = self._episodes = 0
        self._most = Spread(0.0, 0.0)
        self._later = Spread(0.0, 0.0)
        self._collapsed = False

    @property
    def figures(self) -> Figures:
        return {"ds_target_gap": self.gap}

    def alpha(self, step: int) -> float:
        del step
        return self.value

    def observes(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    def observe(self, figures: Figures) -> str | None:
        return self.update(figures[self.figure], Spread.of(figures))

    def update(self, figure: float, spread: Spread) -> str | None:
        """One update; a line for a person where the guard begins to back off.

        A figure that is not finite, of a step that was left out, changes nothing.
        """
        if not all(map(math.isfinite, (figure, *spread))):
            return None
        now = math.log(figure / self.target) if figure > 0 else -MOST_GAP
        now = self.sign * _within(now, -MOST_GAP, MOST_GAP)
        before = self.gap if self._updates else now
        self.gap = SMOOTHING * before + (1 - SMOOTHING) * now
        self._updates += 1
        warning = self._watch(spread)
        move = _within(ASCENT * self.gap + DAMPING * (self.gap - before), -self._limit, self._limit)
        wanted = self.value * (RETREAT if self._collapsed else math.exp(move))
        self.value = _within(wanted, LOWEST, self._ceiling)
        self._pinned = 0 if wanted == self.value else self._pinned + 1
        return warning

    def _watch(self, now: Spread) -> str | None:
        """Sees whether the features are collapsed; a line where they begin to be.

        alpha then gets a ceiling at half of what it was, or the same would come again. It rises
        slowly while the features are whole: those of a later epoch may bear more.
        """
        self._most = Spread(*map(max, self._most, now))
        if SETTLED < self._updates <= FRESH:
            self._later = Spread(*map(max, self._later, now))
        if self._updates == FRESH:
            self._most = self._later
        share = min(new / most for new, most in zip(now, self._most, strict=True) if most)
        if self._collapsed:
            self._collapsed = share < RECOVERED
            return None
        if share > WHOLE:
            self._ceiling = min(self._ceiling * RELIEF, HIGHEST)
        if share >= GUARD:
            return None
        self._collapsed = True
        self._episodes += 1
        self._ceiling = max(self.value * RETREAT, LOWEST)
        return (
            f"the features collapse: distance between images or effective rank is {share:.2g} of "
            f"its best; {self.option} backs off from alpha {self.value:.3g}"
        )

    def missed(self, ds_relative: float | None) -> str | None:
        """A line about a target that was missed by more than a tenth, at the end of training.

        ds_relative: of a validation; without one, that of the last training batches counts.
        """
        if ds_relative is None or math.isnan(ds_relative):
            ds_relative, what = self.target * math.exp(self.gap), "the batches' ds_relative"
        else:
            what = "ds_relative"
        if near(ds_relative, self.target):
            return None
        why = f"alpha ended at {self.value:.3g}; give it more epochs"
        if ds_relative > self.target and self._ceiling < HIGHEST:
            why = f"the features collapsed where alpha was higher than {self.value:.3g}"
        elif self._pinned >= LONG:
            why = f"alpha had reached its limit, {self.value:.3g}, long before"
        return f"{what} ended at {ds_relative:.4g}, and --ds-target is {self.target:g}: {why}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "gap": self.gap,
            "alpha": self.value,
            "ceiling": self._ceiling,
            "counts": [self._updates, self._pinned, self._episodes],
            "most": [list(self._most), list(self._later)],
            "collapsed": self._collapsed,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is None:
            raise UserError("it has no state of --ds-target")
        self.gap = float(state["gap"])
        self.value, self._ceiling = float(state["alpha"]), float(state["ceiling"])
        self._updates, self._pinned, self._episodes = map(int, state["counts"])
        self._most, self._later = (Spread(*most) for most in state["most"])
        self._collapsed = bool(state["collapsed"])


class Keeper(Multiplier):
    """alpha, and below its start the learning rate, so that few enough answers change.

    The other side of the same Lagrangian: DS is minimized subject to a share of changed answers of
    at most 1 - keep, of the images that train. While fewer change than may, alpha rises; where more
    do, it falls, and what it falls below its start by, the learning rate falls by, too. Held-out
    images lose more answers; for them the end is drawn back (`drawback`).

    Args:
        alpha: The start, from LOWEST to HIGHEST.
        keep: In (0, 1).
        total_steps: Of the run. A repair may have less than a hundred, and every tenth would leave
            a handful of updates.
    """

    option, figure, sign = "--keep", "disagreement", -1

    def __init__(self, alpha: float, keep: float, total_steps: int) -> None:
        super().__init__(alpha, 1 - keep)
        self.every = min(EVERY, max(1, total_steps // UPDATES))
        # Else alpha would be seven times its start before the first answers have followed it.
        self._limit = LIMIT * math.sqrt(self.every / EVERY)
        self._start = alpha

    def rate(self) -> float:
        return min(1.0, self.value / self._start)

    @property
    def figures(self) -> Figures:
        return {"keep_gap": self.gap}

    def missed(self, ds_relative: float | None) -> str | None:
        del ds_relative  # what was kept, validation tells
        return None


def _within(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)
