"""A whole evaluation: models and data in, every answer, comparison and file out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fastsc.cli.console import printable
from fastsc.config.checks import check_strengths
from fastsc.distributed.devices import keep_memory, pick_device, pick_precision
from fastsc.errors import UserError
from fastsc.evaluation import OPTIONAL, QUESTIONS
from fastsc.evaluation.ask import comparisons, grids_of, rate, slider_images
from fastsc.evaluation.data import Split, open_split
from fastsc.evaluation.facts import facts_of, metadata_of
from fastsc.evaluation.memory import limit_passes
from fastsc.evaluation.models.sources import Source, load_source
from fastsc.evaluation.options import STRENGTHS, Options, Strengths
from fastsc.evaluation.progress import Progress
from fastsc.evaluation.registry import Budget, Sizes, Subject, passes
from fastsc.evaluation.report.page import write_report
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.results.store import Store, opened
from fastsc.evaluation.sliders import Grid
from fastsc.evaluation.subjects import auxiliary_data, make_subject, part_cache, stamp
from fastsc.evaluation.views import Viewer
from fastsc.pipelines.perturbing import perturbations


def evaluate(
    options: Options, say: Callable[[str], object], split: Split | None = None
) -> Evaluation:
    """Answers the questions about each model; writes rows, results.json and report.html.

    Args:
        options: Of the command line.
        say: Is told lines that a person wants to read.
        split: The images, where they are not all of a folder.

    Raises:
        UserError: Something that is asked for cannot be had; nothing was written then. Or an image
            does not decode: what was computed is kept.
    """
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    names = _names(options)
    if options.strengths is not None:
        check_strengths(options.strengths)
    perturbations(options.perturb or ())
    split = split or open_split(
        options.data, options.split, options.on_bad_image, options.pipeline, options.label_key
    )
    if line := split.index.passed_over_line():
        say(line)
    _check_out(options.out, split)
    sources = _sources(options)
    strengths = options.strengths or _strengths(sources, say)
    perturb = options.perturb if options.perturb is not None else _perturb(sources, say)
    auxiliary = auxiliary_data(options, split)
    for line in auxiliary.pairs.left_out if auxiliary.pairs else ():
        say(f"left out: pair {line}")
    models = [source.classifier.to(device).use_channels_last() for source in sources]
    limit_passes(models, options.memory_budget, options.batch_size, device, say)
    if device.type == "cpu":
        keep_memory()
    tuned = min(model.passes.backward or options.batch_size for model in models)
    if options.fine_tune and tuned < options.batch_size:
        say(
            f"fine-tuning keeps its batches of {options.batch_size} images, as its figures depend "
            f"on them; the memory budget has room for {tuned}"
        )
    largest = max(source.classifier.preprocessing.resolution for source in sources)
    sizes = Sizes.of(options.budget, largest, dict(options.images))
    with ExitStack() as loaders:
        subjects = []
        for name, source in zip(names, sources, strict=True):
            subject = make_subject(
                options,
                name,
                split,
                source,
                device,
                precision,
                sizes,
                strengths,
                perturb,
                auxiliary,
            )
            for loader in subject.loaders:
                loaders.callback(loader.close)
            subjects.append(subject)
            for line in (*source.notes, *subject.left_out.values()):
                say(f"{name}: {line}")
        asked = _questions(options, subjects, say)
        n = len(subjects[0].loader.index.usable)
        n_pairs = 0 if auxiliary.pairs is None else len(auxiliary.pairs.first)
        counts = passes(asked, sizes, n, len(perturb), n_pairs)
        _announce(subjects, sum(counts.values()), options.budget, say)
        store = loaders.enter_context(opened(options.out))
        progress = Progress(
            {
                (subject.name, question): count
                for question, count in counts.items()
                for subject in subjects
                if question not in subject.left_out
            },
            say,
        )
        with progress.watching(models):
            evaluated = _ask_all(store, options, subjects, asked, progress, say)
        evaluation = Evaluation(
            models=tuple(evaluated),
            comparisons=comparisons(evaluated, options.seed),
            metadata=metadata_of(options, split, asked, precision, subjects[0]),
            image_name=lambda i: split.index.paths[i],
            class_name=lambda i: _class_of(split, i),
        )
        store.write(evaluation)
        write_report(options.out / "report.html", evaluation)
    return evaluation


# --- what is asked of whom -----------------------------------------------------------------------


def _check_out(out: Path, split: Split) -> None:
    """Raises UserError where the results would lie among the images, and count as a class."""
    root = split.index.root.resolve()
    if out.resolve().is_relative_to(root):
        raise UserError(f"--out {out} lies in {root}, among the images; name another folder")


def _strengths(sources: Sequence[Source], say: Callable[[str], object]) -> Strengths:
    """What the runs trained with, where they agree and it is any; else the default."""
    trained = {s for source in sources if (s := source.strengths) is not None and any(s)}
    strengths = next(iter(trained)) if len(trained) == 1 else STRENGTHS
    if len(trained) > 1:
        say("the runs were trained with different --strengths; these are the default's")
    if len(trained) > 1 or strengths != STRENGTHS:
        say(f"strengths: {' '.join(f'{s:g}' for s in strengths)}")
    return strengths


def _perturb(sources: Sequence[Source], say: Callable[[str], object]) -> tuple[str, ...]:
    """What the runs perturbed with besides the colors, where they agree and it is any."""
    trained = {source.perturb for source in sources if source.perturb}
    if len(trained) > 1:
        say("the runs were trained with different --perturb; name here what is to be measured")
        return ()
    perturb = next(iter(trained), ())
    if perturb:
        say(f"perturb: {' '.join(perturb)}")
    try:
        perturbations(perturb)
    except UserError as error:
        raise UserError(
            f"{error}; the run trained with it; run from its folder, set PYTHONPATH, or give "
            "--perturb without a name"
        ) from None
    return perturb


def _names(options: Options) -> list[str]:
    """What each model is called: as it was given, a run by its folder's name."""
    if options.names is not None:
        names = [printable(name) for name in options.names]
        if not all(name.strip() for name in names):
            raise UserError("--names: an empty name")
        if len(names) != len(options.models):
            raise UserError(f"--names: {len(names)} names for {len(options.models)} models")
    else:
        names = [printable(_short(model)) for model in options.models]
        if len(set(names)) < len(names):
            names = [printable(model) for model in options.models]
    if len(set(names)) < len(names):
        raise UserError("two models have one name; tell them apart with --names A B")
    return names


def _short(model: str) -> str:
    path = Path(model)
    if path.suffix == ".safetensors":
        return path.resolve().parent.name if path.stem == "weights" else path.stem
    return path.resolve().name if path.is_dir() else model


def _sources(options: Options) -> list[Source]:
    """The models with the weights files dealt out to those that take one."""
    files = list(options.weights)
    takers = [model for model in options.models if _takes_weights(model)]
    if files and len(files) != len(takers):
        raise UserError(
            f"--weights: {len(files)} files for {len(takers)} models that take one (torchvision:, "
            "timm:, module:function); name one for each, in their order"
        )
    sources = []
    for model in options.models:
        of_model = options.model
        if files and _takes_weights(model):
            of_model = replace(of_model, weights=files.pop(0))
        elif options.weights:
            of_model = replace(of_model, weights_key=None)  # of the others' files
        sources.append(load_source(model, of_model))
    return sources


def _takes_weights(model: str) -> bool:
    return ":" in model and not Path(model).exists()


def _questions(
    options: Options, subjects: Sequence[Subject], say: Callable[[str], object]
) -> list[str]:
    """The questions that some model can be asked; each model learns why not the others."""
    for question, n in options.images:
        if question and options.only is not None and question not in options.only:
            raise UserError(f"--images {question}={n}: --only does not ask that question")
    asked: list[str] = []
    given = () if options.pairs is None else OPTIONAL
    usual = [question for question in QUESTIONS if question not in OPTIONAL]
    for question in dict.fromkeys((*(options.only or usual), *given)):
        whys = [subject.cannot(question) for subject in subjects]
        if None in whys:
            asked.append(question)
        for subject, why in zip(subjects, whys, strict=True):
            if why is None:
                continue
            if options.only is not None and not options.where_possible:
                raise UserError(f"{question}: {why}")
            subject.left_out[question] = why
            if len(set(whys)) > 1:
                say(f"{subject.name}: left out: {question}: {why}")
        if len(set(whys)) == 1 and whys[0] is not None:
            say(f"left out: {question}: {whys[0]}")
    return asked


def _announce(
    subjects: Sequence[Subject], n_passes: int, budget: Budget, say: Callable[[str], object]
) -> None:
    """What it will cost, before anything is spent; the full budget's in minutes, too."""
    n = len(subjects[0].loader.index.usable)
    line = f"{budget} budget, {n:,} images: about {n_passes:,} passes through each model"
    if budget == "full":
        seconds = sum(n_passes / rate(subject) for subject in subjects)
        line += f", {max(1, round(seconds / 60)):,} minutes here, less what is cached"
    say(line)


def _ask_all(
    store: Store,
    options: Options,
    subjects: Sequence[Subject],
    asked: Sequence[str],
    progress: Progress,
    say: Callable[[str], object],
) -> list[Evaluated]:
    """The answers of every model; a question that one cannot be asked joins its `left_out`."""
    answers: dict[str, dict[str, Answer]] = {subject.name: {} for subject in subjects}
    stamps = {
        question: stamp(loader.index for loader in subjects[0].seen_by(question))
        for question in (*asked, "sliders")
    }
    # Question by question: should it be interrupted, the models have the same ones answered.
    for question in asked:
        for subject in subjects:
            if question in subject.left_out:
                continue
            began, before = time.monotonic(), store.computed
            try:
                with progress.part(subject.name, question):
                    cache = part_cache(store, subject, stamps, question)
                    answers[subject.name][question] = subject.ask(question, cache)
            except UserError as error:
                wanted = options.only is not None and not options.where_possible
                if wanted or not str(error).startswith(f"{question}: "):
                    raise  # it is wanted; an image does not decode, the disk is full
                subject.left_out[question] = str(error).removeprefix(f"{question}: ")
                say(f"{subject.name}: left out: {error}")
                continue
            how = f"in {time.monotonic() - began:.0f} s" if store.computed > before else "cached"
            say(f"{subject.name}: {question}, {how}")
    grids: dict[str, tuple[Grid, ...]] = {}
    if "continuity" in asked:
        images = slider_images(subjects[0], answers[subjects[0].name]["continuity"])
        for subject in subjects:
            with progress.part(subject.name, "sliders"):
                cache = part_cache(store, subject, stamps, "sliders")
                answer = answers[subject.name]["continuity"]
                grids[subject.name] = grids_of(subject, images, answer, cache)
    return [
        Evaluated(
            name=subject.name,
            answers=answers[subject.name],
            left_out=subject.left_out,
            picture=Viewer(subject.model, subject.loader).picture,
            facts=facts_of(subject),
            grids=grids.get(subject.name, ()),
        )
        for subject in subjects
    ]


def _class_of(split: Split, index: int) -> str:
    return split.index.classes[split.index.targets[index]] if split.labelled else ""
