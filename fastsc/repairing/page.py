"""The end of a repair: an evaluation's page of the network before and after, and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fastsc.config import TrainConfig
from fastsc.datasets.folders import Data
from fastsc.evaluation.data import Split
from fastsc.evaluation.models.sources import ModelOptions
from fastsc.evaluation.options import Options
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.evaluation.run import evaluate
from fastsc.loading.nets import is_function
from fastsc.run.folder import RunFolder
from fastsc.run.reporter import Report

NAMES = "before", "after"
FIGURES = "ds_relative", "flips", "top1"
CURVES = 16  # images whose every change is followed; an evaluation by itself takes more


@dataclass(frozen=True)
class Outcome:
    """What changed, on the images that were held out.

    Attributes:
        before, after: ds_relative, flips and, where the labels are known, top1.
        agreement: Part of the images with the answer of before.
        n: Images.
        certain: Whether the paired 95 % interval of ds_relative's difference, if any, excludes 0.
    """

    before: dict[str, float]
    after: dict[str, float]
    agreement: float
    n: int
    certain: bool = True

    @classmethod
    def of(cls, evaluation: Evaluation) -> Outcome:
        """Of an evaluation of two models, the former one first."""
        old, new = (model.answers["continuity"] for model in evaluation.models)

        before, after = (
            {name: answer[name].value for name in FIGURES if name in answer.estimates}
            for answer in (old, new)
        )
        answers = [answer.tables["pairs"].columns["predicted"] for answer in (old, new)]
        differences = [c.difference for c in evaluation.comparisons if c.name == "ds_relative"]
        return cls(
            before=before,
            after=after,
            agreement=float((answers[0] == answers[1]).mean()),
            n=len(answers[0]),
            certain=not any(d.low <= 0 <= d.high for d in differences),
        )

    @property
    def better(self) -> bool:
        """Whether it is more continuous for certain, and no more images flip."""
        fell = self.after["ds_relative"] < self.before["ds_relative"]
        return fell and self.certain and self.after["flips"] <= self.before["flips"]

    def sentence(
        self, keep: float | None, holds: bool, agreement_at_end: float | None = None
    ) -> str:
        """What came of it, for a person; see `write_page`."""
        if keep is not None and not holds:
            line = f"--keep {keep:g} could not be held at any point: the weights are as before"
            if agreement_at_end is None:
                return line
            return (
                f"{line}; at the end of training {100 * agreement_at_end:.1f} % of {self.n} "
                "held-out images had their old answer"
            )
        old, new = self.before, self.after
        ds, ds_now = old["ds_relative"], new["ds_relative"]
        change = f" ({100 * (ds_now / ds - 1):+.0f} %)" if ds else ""  # 0: nothing was perturbed
        figures = (
            f"ds_relative {ds:.3f} → {ds_now:.3f}{change}, flips "
            f"{100 * old['flips']:.1f} → {100 * new['flips']:.1f} %, {100 * self.agreement:.1f} % "
            f"of {self.n} held-out images with their old answer"
        )
        if "top1" in old:
            figures += f", top-1 {100 * old['top1']:.1f} → {100 * new['top1']:.1f} %"
        chance = ", ds_relative within its 95 % interval" * (ds_now < ds and not self.certain)
        return f"repaired: {figures}" if self.better else f"it did not work: {figures}{chance}"


def write_page(
    config: TrainConfig,
    data: Data,
    folder: RunFolder,
    report: Report,
    holds: bool,
    agreement_at_end: float | None = None,
) -> None:
    """Evaluates both networks on the held-out images, into the run's folder; says what came of it.

    Args:
        config: The run's.
        data: Its images, of which those of validation were held out.
        folder: Its folder, with before.safetensors and weights.safetensors.
        report: Gets the sentence, for the log and for a person.
        holds: Whether the exported point keeps as many answers as it should; where none does, it
            is the network before.
        agreement_at_end: Part of the held-out images with their old answer after the last step.

    Raises:
        UserError: An image does not decode, or the disk is full.
    """
    assert data.val is not None
    files = [folder.before, folder.weights]
    model, seen = config.model.model, config.data
    models: dict[str, Any] = {"models": [str(file) for file in files]}
    if is_function(model):  # a file's code is not run unless it is named
        models = {
            "models": [model, model],
            "weights": files,
            "model": ModelOptions(
                mean=seen.mean,
                std=seen.std,
                resolution=seen.val_resolution or seen.resolution,
                resize=_resize(config),
                interpolation=seen.interpolation,
            ),
        }
    options = Options(
        data=Path(seen.data),
        out=folder.page.parent,
        only=["continuity"],
        images=[("continuity", CURVES)],
        names=NAMES,
        strengths=seen.strengths,
        perturb=seen.perturb,
        on_bad_image=seen.on_bad_image,
        pipeline=seen.pipeline,
        device=config.run.device,
        workers=seen.workers,
        **models,
    )
    split = Split(data.val, labelled=data.val.classes != ("",))
    outcome = Outcome.of(evaluate(options, report.say, split))
    report.event("repair", **vars(outcome), keep=config.method.keep, holds=holds)
    report.say(outcome.sentence(config.method.keep, holds, agreement_at_end))
    report.say(f"{folder.page} compares them")


def _resize(config: TrainConfig) -> int | None:
    """The shorter side before the square is cut out, in whole pixels."""
    side = config.data.val_resolution or config.data.resolution
    return round(side / Fraction(config.data.val_crop))
