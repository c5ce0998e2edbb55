"""An evaluation of models that do not exist: random rows in the real answers' classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.evaluation.ask import comparisons
from fastsc.evaluation.questions.continuity.question import Continuity
from fastsc.evaluation.questions.embedding import Embedding
from fastsc.evaluation.questions.gradients import Gradients
from fastsc.evaluation.questions.neighbours import Neighbours
from fastsc.evaluation.results.answers import Answer, Example, Rows
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.kernels.color import color_jitter

KINDS = ("brightness", "contrast", "saturation", "hue")
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
LEVELS = (0.5, 1.0, 2.0)
RANGES = {"brightness": (0.0, 3.0), "contrast": (0.0, 3.0), "saturation": (0.0, 3.0)} | {
    "hue": (-0.5, 0.5)
}
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "representation")
HOSTILE = "<script>alert(1)</script>"
EXAMPLE = (1.38, 0.88, 1.05, -20 / 360)


@dataclass(frozen=True, eq=False, kw_only=True)
class Weather(Answer):
    """A question that the page has never heard of."""

    question: ClassVar[str] = "weather"


def rows(n: int, **columns: Any) -> Rows:
    return Rows(np.arange(n), columns)


def continuity(seed: int, n: int, calm: float, *, labelled: bool = True) -> Continuity:
    rng = np.random.default_rng(seed)
    between = rng.gamma(20, 0.5, n)

    def moved(strength: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = calm * strength * rng.gamma(4, 0.25, n) * between.mean()
        return found

    curves: dict[str, Any] = {"between": between}
    measures = [
        Measure(Name("ds"), "mean", "pairs", ("moved",)),
        Measure(Name("ds_relative"), "ratio", "pairs", ("moved", "between")),
        Measure(Name("flips"), "share", "pairs", ("flipped",)),
        Measure(Name("confidence_change"), "mean", "pairs", ("confidence_change",)),
    ]
    if labelled:
        measures += [
            Measure(Name("top1"), "share", "labelled", ("correct",)),
            Measure(Name("top1_perturbed"), "share", "labelled", ("correct_perturbed",)),
        ]
    for kind in (*KINDS, "together"):
        for level in LEVELS:
            strength = f"{level * dict(zip(KINDS, STRENGTHS, strict=True)).get(kind, 1):.4g}"
            at = f"{kind}/{strength}"
            curves[f"moved/{at}"] = moved(level * 0.5)
            curves[f"flipped/{at}"] = rng.binomial(2, min(0.9, calm * level * 0.3), n) / 2
            curves[f"confidence_change/{at}"] = -calm * level * rng.beta(1, 4, n)
            measures += [
                Measure(Name(family, kind, strength), statistic, "curves", columns)
                for family, statistic, columns in (
                    ("ds_relative", "ratio", (f"moved/{at}", "between")),
                    ("flips", "mean", (f"flipped/{at}",)),
                    ("confidence_change", "mean", (f"confidence_change/{at}",)),
                )
            ]
    radius: dict[str, Any] = {}
    for kind in KINDS:
        for way, end in (("down", 1.0), ("up", 2.0)):
            end = 0.5 if kind == "hue" else end
            # Nobody minds saturation: its median is beyond the range.
            scale = 9.0 if kind == "saturation" else 0.7 / calm
            found = end * rng.gamma(2, scale / 2, n)
            radius[f"{kind}/{way}"] = np.where(found > end, np.inf, found)
        radius[f"{kind}/either"] = np.minimum(radius[f"{kind}/down"], radius[f"{kind}/up"])
        measures += [
            Measure(Name("flip_radius", kind, way), "median", "radius", (f"{kind}/{way}",))
            for way in ("down", "up", "either")
        ]
    profile: dict[str, Any] = {}
    for place, stage in enumerate(STAGES):
        profile[f"between/{stage}"] = between
        profile[f"moved/{stage}"] = moved(1.2 - 0.15 * place)
        profile[f"shuffled/{stage}"] = rng.gamma(20, 0.5, n)
        measures += [
            Measure(Name(name, stage), "ratio", "profile", (f"{top}/{stage}", f"between/{stage}"))
            for name, top in (("layers", "moved"), ("chance", "shuffled"))
        ]
    tables = {
        "pairs": rows(
            n,
            moved=moved(1),
            between=between,
            flipped=(rng.random(n) < 0.25 * calm).astype(float),
            confidence_change=-calm * rng.beta(1, 5, n),
        ),
        "curves": rows(n, **curves),
        "radius": rows(n, **radius),
        "profile": rows(n, **profile),
        "labelled": rows(
            n,
            correct=(rng.random(n) < 0.8).astype(float),
            correct_perturbed=(rng.random(n) < 0.7).astype(float),
        ),
    }
    return Continuity(
        tables=tables,
        measures=tuple(measures),
        examples=tuple(
            Example(i, EXAMPLE, (f"ds_relative {2 - i / 5:.2f}", "cat (80 %) → <b>dog</b> (51 %)"))
            for i in range(8)
        ),
        seed=seed,
        strengths=STRENGTHS,
        levels=LEVELS,
        ranges=dict(RANGES),
        stages=STAGES,
    )


def neighbours(seed: int, n: int, calm: float) -> Neighbours:
    rng = np.random.default_rng(seed)
    nearest = rng.gamma(9, 1, n)
    random = nearest + rng.gamma(4, 1, n)
    moved = calm * rng.gamma(3, 4, n)
    return Neighbours(
        tables={
            "triples": rows(
                n,
                moved=moved,
                random=random,
                nearest=nearest,
                farther_than_random=(moved > random).astype(float),
                farther_than_nearest=(moved > nearest).astype(float),
            )
        },
        measures=tuple(
            Measure(Name(f"farther_than_{other}"), "share", "triples", (f"farther_than_{other}",))
            for other in ("random", "nearest")
        ),
        examples=(Example(2, EXAMPLE, ("1.4 times as far",), (3, 4)),),
        seed=seed,
        left_out=("nearest: it is searched among 50 images a class",),
        others=np.stack([np.roll(np.arange(n), 1), np.roll(np.arange(n), 2)], 1),
        searched=n,
    )


def embedding(seed: int, n: int, calm: float, name: str = HOSTILE) -> Embedding:
    rng = np.random.default_rng(seed)
    views = 12
    points = {}
    for method in ("PCA", "t-SNE", "UMAP"):
        images = rng.normal(size=(n, 2)) * 4
        points[method] = np.concatenate(
            [images, images[3] + 2 * calm * rng.normal(size=(views, 2))]
        )
    factors = rng.uniform((0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1), (views, 4))
    return Embedding(
        tables={"views": rows(n, views=calm * rng.gamma(5, 1, n), others=rng.gamma(20, 0.4, n))},
        measures=(Measure(Name("spread"), "ratio", "views", ("views", "others")),),
        examples=(Example(3, EXAMPLE, ("12 % of the others lie nearer",), (4,)),),
        seed=seed,
        class_name=name,
        index=np.arange(n),
        image=3,
        view_factors=factors.astype(np.float32),
        points=points,
        explained=0.413,
    )


def gradients(seed: int, n: int, calm: float) -> Gradients:
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(-1, 1, (2, n))
    return Gradients(
        tables={
            "gradients": rows(
                n,
                norm_clean=norms[0],
                norm_perturbed=norms[1],
                cosine=np.clip(0.5 / calm + 0.25 * rng.normal(size=n), -1, 1),
            ),
            "slopes": rows(n, **{kind: calm * rng.gamma(4, 0.5, n) for kind in KINDS}),
        },
        measures=(
            Measure(Name("gradient_norm"), "mean", "gradients", ("norm_clean",)),
            Measure(Name("gradient_norm_perturbed"), "mean", "gradients", ("norm_perturbed",)),
            Measure(Name("gradient_cosine"), "mean", "gradients", ("cosine",)),
            *(Measure(Name("lipschitz", kind), "mean", "slopes", (kind,)) for kind in KINDS),
        ),
        examples=(Example(1, EXAMPLE, ("cosine of the two gradients −0.20",)),),
        seed=seed,
        between=1.0,
        targets=np.zeros(n, np.int64),
    )


def weather(seed: int, n: int) -> Weather:
    rng = np.random.default_rng(seed)
    return Weather(
        tables={"sky": rows(n, rain=rng.random(n), broken=np.full(n, np.nan))},
        measures=(
            Measure(Name("rain"), "mean", "sky", ("rain",)),
            Measure(Name("broken"), "mean", "sky", ("broken",)),
        ),
        seed=seed,
    )


def picture(side: int) -> Any:
    """Smooth random pictures, recolored by the reference."""

    def shown(index: int, factors: tuple[float, float, float, float] | None) -> NDArray[np.uint8]:
        coarse = torch.from_numpy(np.random.default_rng(index).random((1, 3, 5, 5)))
        size = (side, side)
        image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
        if factors is not None:
            image = color_jitter(image, torch.tensor([factors], dtype=image.dtype))
        found: NDArray[np.uint8] = (255 * image[0].permute(1, 2, 0)).round().byte().numpy()
        return found

    return shown


def evaluation(names: Sequence[str] = ("plain",), *, n: int = 30, side: int = 32) -> Evaluation:
    """Each later model is calmer than the one before; none is asked about shifts."""
    shown = picture(side)
    models = []
    for place, name in enumerate(names):
        calm = 1 / (1 + place)
        answers: list[Answer] = [
            continuity(place, n, calm),
            neighbours(place, n, calm),
            embedding(place, n, calm),
            gradients(place, n, calm),
            weather(place, n),
        ]
        models.append(
            Evaluated(
                name=name,
                answers={answer.question: answer for answer in answers},
                left_out={"shifts": "no corrupted images <given>"},
                picture=shown,
                facts={"architecture": "resnet18", "resolution": "32 px", "hash": f"abc{place}"},
            )
        )
    return Evaluation(
        models=tuple(models),
        comparisons=comparisons(models, 0),
        metadata={
            "data": "/data/<pets>",
            "seed": 0,
            "command": "python -m fastsc.evaluate <a> --data '/data/<pets>'",
            "versions": {"torch": "2.11", "dali": None},
            "strengths": [0.4, 0.4, 0.4, 0.1],
        },
        image_name=lambda i: f"{HOSTILE}/{i:03d}&.png",
        class_name=lambda i: HOSTILE,
    )
