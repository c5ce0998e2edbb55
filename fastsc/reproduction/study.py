"""A study: which trainings are compared, by which options, and what is asked of them.

The grid is a YAML file. `arms` holds what is trained, `groups` the arms that a section of the page
sets side by side, `evaluate` what `fastsc.evaluate` is asked about which of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsc.config import TrainConfig
from fastsc.config.recipes import configure
from fastsc.errors import UserError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of its runs and records.
        label: What a reader sees.
        options: Fields of `fastsc.config`, over the recipe's and the study's.
        seeds: How many, from the study's first one on.
        times: Epochs, as a multiple of the study's.
    """

    name: str
    label: str
    seeds: int
    options: Options = field(default_factory=dict)
    times: float = 1.0


@dataclass(frozen=True)
class Evaluated:
    """What `fastsc.evaluate` is asked about the trained networks.

    Attributes:
        arms: By name.
        questions: Of `fastsc.evaluation.QUESTIONS`.
        seeds: Of each arm, the first so many.
        images: Of a question, in place of the quick budget's.
    """

    arms: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    seeds: int = 0
    images: Mapping[str, int] = field(default_factory=dict)

    def asked(self, arm: str, nth: int) -> tuple[str, ...]:
        """The questions about an arm's run of the nth seed, from 0; none about most."""
        return self.questions if arm in self.arms and 0 <= nth < self.seeds else ()


@dataclass(frozen=True)
class Rate:
    """Images a second of a machine that is not at hand, as somebody else published it."""

    machine: str
    model: str
    images_per_s: float
    source: str


@dataclass(frozen=True)
class Study:
    """A sweep.

    Attributes:
        name, title: For the command line and for a reader.
        about: What the setting is, in a sentence.
        recipe: Of `fastsc.train`.
        images: For training; of a larger data set the first so many, dealt over the classes.
        held_out: Images to validate on, the next ones of those for training, where something is
            chosen; 0: all validation images.
        options: Of every arm, over the recipe's.
        epochs: E.
        reference: The arm that others are set beside; of a study with a default plain training, in
            whose units continuity is given.
        default: The arm whose claims are tested; empty: the arms are only set side by side.
        baselines: Arms of equal cost that a claim has to beat.
        augmentation: The one of them that sees the same views as the default.
        claimed: Further arms whose claims are tested -> the arms that they are tested against.
        reason: Why the default is what it is, or what the arms are set side by side for; no
            results, which the page takes from the records.
        chosen: How it was chosen, which a reader of its verdicts has to know.
        arms: By name, in the order in which they are run.
        seeds: Of an arm that does not say how many.
        first_seed: Of every arm, where earlier ones had a part in a choice.
        groups: Sections of the page -> names of arms in order.
        evaluate: What the networks are asked.
        quick: Arms of the short replication.
        quick_seeds: Seeds of it, which are not those of the records.
        scales: Options by name, of another machine's setting.
        rates: Published ones, for the cost on machines that are not at hand.
    """

    name: str
    title: str
    about: str
    recipe: str
    images: int
    epochs: int
    reference: str
    arms: Mapping[str, Arm]
    default: str = ""
    baselines: tuple[str, ...] = ()
    augmentation: str = ""
    seeds: int = 1
    first_seed: int = 0
    held_out: int = 0
    claimed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""
    chosen: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evaluate: Evaluated = field(default_factory=Evaluated)
    quick: tuple[str, ...] = ()
    quick_seeds: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)
    scales: Mapping[str, Options] = field(default_factory=dict)
    rates: tuple[Rate, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """The arms that the default is compared with: plain training, then those of equal cost."""
        return tuple(dict.fromkeys((self.reference, *self.baselines)))

    def seeds_of(self, arm: Arm) -> range:
        """The arm's seeds."""
        return range(self.first_seed, self.first_seed + arm.seeds)

    def asked(self, arm: Arm, seed: int) -> tuple[str, ...]:
        """The questions about a run."""
        return self.evaluate.asked(arm.name, seed - self.first_seed)

    def values(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The options of a run, over the recipe's; what the arm says wins over the study."""
        epochs = max(1, round(arm.times * self.epochs))
        # Validated once, at the end: it costs, and nothing is chosen by it.
        return {**self.options, "epochs": epochs, "val_every": epochs, "seed": seed, **arm.options}

    def config(self, arm: Arm, data: Path, seed: int) -> TrainConfig:
        """The training of a run. UserError names the arm whose options cannot be meant."""
        try:
            return configure(self.recipe, data=str(data), **self.values(arm, seed))
        except UserError as error:
            raise UserError(f"study {self.name}, arm {arm.name}: {error}") from None

    def config_alpha(self, arm: str) -> float:
        """The weight of DS in an arm."""
        return self.config(self.arms[arm], Path("DIR"), 0).method.alpha

    def plain(self, arm: str) -> bool:
        """Whether an arm sees clean views alone."""
        return self.config(self.arms[arm], Path("DIR"), 0).method.plain

    def changed(self, options: Options) -> Study:
        """The study with other options for every arm; `epochs` is E."""
        epochs = options.get("epochs", self.epochs)
        return replace(self, options={**self.options, **options}, epochs=epochs)

    def scaled(self, name: str) -> Study:
        """The study in the setting of another machine, with its own `images` and `about`."""
        if name not in self.scales:
            known = ", ".join(self.scales) or "none"
            raise UserError(f"--scale {name}: study {self.name} has {known}")
        options = dict(self.scales[name])
        images, about = options.pop("images", self.images), options.pop("about", self.about)
        return replace(self.changed(options), images=images, about=about)
