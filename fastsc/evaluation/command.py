"""What `fastsc.evaluate` does with the words of its command line."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsc.cli.console import write_line
from fastsc.cli.parser import Parser, count, folder_name, positive, seed, side, whole, workers
from fastsc.evaluation import QUESTIONS, SIZED
from fastsc.pipelines.fields import did_you_mean

if TYPE_CHECKING:
    from fastsc.evaluation.results.evaluated import Evaluation

MODELS = """\
A MODEL is a run's folder or a .safetensors file of fastsc, torchvision:NAME, timm:NAME, or
module:function, which returns an nn.Module. Several are compared, the later ones with the first."""


def run(words: list[str]) -> int:
    """Parses the options, evaluates, and says what one sees first; the page says the rest."""
    args = _parser().parse_args(words)
    # Imported here: torch alone takes seconds, and --help should not wait for it.
    from fastsc.evaluation.models.sources import ModelOptions
    from fastsc.evaluation.options import Options
    from fastsc.evaluation.run import evaluate

    began = time.monotonic()
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items()
    }
    of_models = {f.name: given.pop(f.name) for f in fields(ModelOptions) if f.name != "weights"}
    options = Options(model=ModelOptions(**of_models), **given)
    evaluation = evaluate(options, write_line)
    _conclude(evaluation, args.out, time.monotonic() - began)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastsc.evaluate",
        description="How continuous is any classifier? Figures with intervals, and a page.",
        epilog=MODELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="what to evaluate; see below")
    add("--data", type=folder_name, required=True, metavar="DIR",
        help="a folder of images, or of tars; or a list of files, LIST.csv")
    add("--out", type=folder_name, required=True, metavar="DIR",
        help="results.json, report.html, rows/ (one row per image), cache/")
    add("--only", nargs="+", choices=QUESTIONS, metavar="QUESTION",
        help=f"of {', '.join(QUESTIONS)}; default: all that the data can answer")
    add("--where-possible", action="store_true",
        help="leave out and name what the data cannot answer, of --only too")
    add("--budget", choices=("quick", "full"), default="quick",
        help="quick: minutes on a CPU; full: ten times the images (default: %(default)s)")
    add("--images", type=_images, action="append", default=[], metavar="N",
        help="images per question, instead of the budget's; QUESTION=N, of this one alone: more "
        "than once")
    add("--names", nargs="+", metavar="NAME", help="what the models are called, in their order")
    add("--seed", type=seed, default=0, help="of the choice of images and of the intervals")

    data = parser.add_argument_group("the data")
    add = data.add_argument
    add("--split", metavar="NAME",
        help="folder, tars or split in DIR; default: val, test, train, or DIR itself")
    add("--label-key", metavar="NAME",
        help="of WebDataset's tars, those of --transfer-data too: the field of KEY.json that is "
        "the label")
    add("--class-map", type=Path, metavar="FILE",
        help="JSON or YAML: class folder to the model's output, by number or name")
    add("--class", dest="class_name", metavar="FOLDER",
        help="class of the embedding; default: the one with most images")
    add("--transfer-data", type=folder_name, metavar="DIR",
        help="another labelled data set, for the question transfer")
    add("--fine-tune", action="store_true", help="on it, too: minutes on a CPU")
    add("--pairs", type=Path, metavar="FILE.csv",
        help="two files a line, and an optional label: real pictures of the same thing, for the "
        "question pairs")
    add("--strengths", type=float, nargs=4, metavar=("B", "C", "S", "H"),
        help="of brightness, contrast, saturation, hue; default: those that the runs trained "
        "with, else 0.4 0.4 0.4 0.1")
    add("--perturb", nargs="*", metavar="NAME[=STRENGTH]",
        help="further changes, each measured over its strength: blur, jpeg=90, …, or a "
        "module:function; default: those that the runs trained with; without a name: none")
    add("--on-bad-image", choices=("raise", "skip"), default="raise",
        help="skip: decode every image once and leave the broken ones out")

    model = parser.add_argument_group("the models; all but weights is for each of them")
    add = model.add_argument
    add("--weights", type=Path, action="append", default=[], metavar="FILE",
        help="of a torchvision:, timm: or module:function model; once for each, in their order")
    add("--weights-key", metavar="KEY",
        help="the part of that file, as state_dict.model; default: averaged weights, if there are")
    add("--no-pretrained", dest="pretrained", action="store_false",
        help="torchvision: and timm: models with fresh weights")
    add("--features", metavar="MODULE",
        help="whose output is the representation; default: the classifier's input")
    add("--mean", type=float, nargs=3, metavar="X", help="of R, G, B on [0, 1]")
    add("--std", type=float, nargs=3, metavar="X", help="likewise")
    add("--resolution", type=side, metavar="PX", help="side of the square that the model sees")
    add("--resize", type=side, metavar="PX", help="shorter side before the square is cut out")
    add("--interpolation", choices=("bilinear", "bicubic"), help="of the resize, antialiased")

    machine = parser.add_argument_group("the machine")
    add = machine.add_argument
    add("--pipeline", choices=("cpu", "dali", "memory"), default="cpu", help="who decodes")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32",
        help="of the forward passes (default: %(default)s); gradients are in fp32")
    add("--batch-size", type=whole(1, 2**20), default=64, metavar="N",
        help="images in a pass, where the memory budget has room (default: %(default)s)")
    add("--memory-budget", type=positive, metavar="GB",
        help="of the whole process at its peak, on a GPU of the device; smaller passes keep to it "
        "(default: 2.5 on a CPU, no bound on a GPU)")
    add("--workers", type=workers, metavar="N", help="decoding threads; default: one per core")
    # fmt: on
    return parser


def _images(text: str) -> tuple[str, int]:
    """The question and its number of images; "" for N alone, which is meant for every one."""
    question, _, n = text.rpartition("=")
    if question and question not in SIZED:
        raise argparse.ArgumentTypeError(
            f"{question!r} is no question that takes a number of images"
            f"{did_you_mean(question, SIZED)}; there are {', '.join(SIZED)}"
        )
    return question, count(n)


def _conclude(evaluation: Evaluation, out: Path, seconds: float) -> None:
    """One line per model, and where the rest is."""
    for model in evaluation.models:
        if (pairs := model.answers.get("pairs")) is not None:
            moved, flips = pairs["ds_relative"], pairs["flips"]
            write_line(
                f"{model.name}, {moved.n:,} pairs: ds_relative {moved.value:.3f} "
                f"({moved.low:.3f} to {moved.high:.3f}), flips {flips.value:.1%} "
                f"({flips.low:.1%} to {flips.high:.1%})"
            )
        answer = model.answers.get("continuity")
        if answer is None:
            continue
        words = []
        for name, title, digits in (
            ("top1", "top-1", ".1%"),
            ("ds_relative", "ds_relative", ".3f"),
            ("flips", "flips", ".1%"),
        ):
            if name in answer.estimates:
                figure = answer[name]
                if math.isnan(figure.value):
                    words.append(
                        f"{title} undefined: all {figure.n:,} images have one representation"
                    )
                    continue
                ends = f"{figure.low:{digits}} to {figure.high:{digits}}"
                words.append(f"{title} {figure.value:{digits}} ({ends}; n = {figure.n:,})")
        write_line(f"{model.name}: {', '.join(words)}")
    write_line(f"{out / 'report.html'} and results.json next to it, in {seconds:.0f} s")
