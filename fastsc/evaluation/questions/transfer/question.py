"""Are the features good for other classes, too? A probe, neighbours, and fine-tuning.

The representation of a network is taken as it is, and other classes are read from it; once from
images as they are and once in other colors, which the reader has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import installed
from fastsc.errors import UserError
from fastsc.evaluation.data import some
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.transfer.fine_tuning import epochs_of, fine_tuned
from fastsc.evaluation.questions.transfer.probing import (
    CHOICES,
    FOLDS,
    MAX_ITER,
    fitted,
    fold_accuracy,
    folds_of,
    nearest,
)
from fastsc.evaluation.results.answers import (
    Answer,
    Arrays,
    PartCache,
    Rows,
    compute,
    in_parts,
)
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.transfer_data import ranks_in_class
from fastsc.evaluation.views import Images, Indices, Viewer, choose, shares
from fastsc.pipelines import Pipeline

KS = (5, 20)
A_CLASS = 5  # images to learn from, at least, where there are so many
PART = 1000  # images of a part


@dataclass(frozen=True, eq=False, kw_only=True)
class Transfer(Answer):
    """Answer of `transfer`. The table's index is that of the test loader, not of other questions.

    Attributes:
        data: The folder of the training part.
        classes: Their names, in the order of the numbers in the table.
        learned: Images that were learned from.
        chance: Share that guessing gets right.
        c: The probe's inverse weight of the penalty, as the folds chose it.
    """

    question: ClassVar[str] = "transfer"
    data: str
    classes: tuple[str, ...]
    learned: int
    chance: float
    c: float


def transfer(
    model: Classifier,
    train_loader: Pipeline,
    test_loader: Pipeline,
    *,
    n: int | None = 400,
    fine_tune: bool = False,
    seed: int = 0,
    cache: PartCache = compute,
) -> Transfer:
    """Accuracy on another data set's classes, of readers of the frozen features and of a copy.

    Of up to n images of the training part, as many of each class as can be, but five of each where
    there are so many; judged on up to n of the test part, each as it is and in the other colors of
    validation during training ("_perturbed").

    - probe: multinomial logistic regression (L2, L-BFGS) on features standardized over the training
      images. Its C is one of 1e-4, 1e-3, 1e-2, .1, 1: the most accurate in a keyed, stratified
      three-fold cross-validation of the training images, of equals the smallest; 0.01 where all
      classes have one image. Standardization is part of what is cross-validated, and the test part
      takes part in nothing. probe/flips: answers that differ in other colors.
    - knn5, knn20: the most frequent class among the nearest by the cosine of features.
    - fine_tuned, if asked for: all of a copy of the network, with a fresh last layer; see
      `fastsc.evaluation.questions.transfer.fine_tuning`. It is the one part that may take minutes.
    - majority: the largest class of the training part, whatever the image.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        train_loader, test_loader: Validation pipelines (`build(..., train=False)`) of indices with
            the classes to be learned, e.g. by `transfer_splits`; the latter's strengths are those
            of the perturbation.
        fine_tune: Whether to fine-tune.

    Raises:
        UserError: There are fewer than two classes to learn, a class of the test part is not in the
            training part, or scikit-learn is missing.
    """
    names, learn, test = check_transfer(train_loader, test_loader, fine_tune=fine_tune)
    ranks = ranks_in_class(train_loader.index, seed)
    index, tested = _balanced(train_loader, ranks, n), choose(test_loader, n, seed)
    targets, label = learn[train_loader.index.targets[index]], test[test_loader.index.targets]
    label = label[tested]
    settings: dict[str, object] = {
        "train": train_loader.index.hash, "test": test_loader.index.hash, "n": n, "seed": seed,
        "strengths": test_loader.settings.strengths,
    }  # fmt: skip

    parts, work = shares(index, PART), partial(_features, Viewer(model, train_loader))
    learned = in_parts(cache, "train", parts, settings, work)["clean"]
    parts = shares(tested, PART)
    work = partial(_features, Viewer(model, test_loader), both=True)
    views = in_parts(cache, "test", parts, settings, work)
    c = _choice(learned, targets, folds_of(ranks[index], targets), settings, cache)
    read = cache("probe", settings, lambda: fitted(c, learned, targets, views))
    answers = {"probe": read}
    left_out = []
    if not read["converged"]:
        left_out.append(f"probe: it is not at its optimum after {MAX_ITER:,} steps")
    for k in KS:
        if k <= len(index):
            answers[f"knn{k}"] = cache(
                f"knn{k}", settings, partial(nearest, k, learned, targets, views)
            )
        else:
            left_out.append(f"knn{k}: there are {len(index)} images to learn from")
    if fine_tune:
        tuned = cache(
            "fine-tuned",
            {
                **settings,
                "batch": train_loader.settings.batch_size,
                "epochs": epochs_of(len(index)),
            },
            lambda: fine_tuned(
                model,
                train_loader,
                test_loader,
                index,
                targets,
                tested,
                dim=learned.shape[1],
                seed=seed,
            ),
        )
        if tuned["finite"]:
            answers["fine_tuned"] = {"clean": tuned["tuned"], "perturbed": tuned["tuned_perturbed"]}
        else:
            left_out.append("fine_tuned: its loss left the finite numbers, and it says nothing")
    majority = np.bincount(learn[train_loader.index.targets[train_loader.index.usable]]).argmax()
    paths = np.array([test_loader.index.paths[i] for i in tested])
    return Transfer(
        tables={"test": _rows(tested, paths, label, int(majority), answers)},
        measures=_measures(answers),
        seed=seed,
        left_out=tuple(left_out),
        data=str(train_loader.index.root),
        classes=names,
        learned=len(index),
        chance=1 / len(names),
        c=c,
    )


# --- which images --------------------------------------------------------------------------------


def check_transfer(
    train: Pipeline, test: Pipeline, *, fine_tune: bool
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
    """The classes with images to learn from; and each loader's targets -> their numbers.

    Raises:
        UserError: As `transfer` does, but for images that do not decode.
    """
    if not installed("sklearn"):
        raise UserError("transfer: scikit-learn is not installed; pip install scikit-learn")
    if fine_tune and train.settings.batch_size < 2:
        raise UserError("transfer: fine-tuning wants batches; take --batch-size 2 or more")
    labels = np.unique(train.index.targets[train.index.usable])
    names = tuple(train.index.classes[c] for c in labels)
    if len(names) < 2:
        raise UserError(
            f"transfer: {train.index.root} has images of one class, and nothing to tell it from; "
            "take a data set with several"
        )
    number = {name: i for i, name in enumerate(names)}
    learn, tested = (
        np.array([number.get(name, -1) for name in loader.index.classes])
        for loader in (train, test)
    )
    asked = np.unique(test.index.targets[test.index.usable])
    unknown = [test.index.classes[c] for c in asked if tested[c] < 0]
    if unknown:
        raise UserError(
            f"transfer: {some(unknown)} of the test part {test.index.root} "
            f"{'is' if len(unknown) == 1 else 'are'} not in the training part {train.index.root}, "
            "and cannot be learned"
        )
    return names, learn, tested


def _balanced(loader: Pipeline, ranks: NDArray[np.int64], n: int | None) -> Indices:
    """Sorted dataset indices: the first of each class, then the second, … up to n of them.

    A larger n keeps what a smaller one chose.
    """
    usable = loader.index.usable
    if n is None:
        return usable
    least = int((ranks[usable] < A_CLASS).sum())
    order = usable[np.lexsort((usable, ranks[usable]))]
    return np.sort(order[: max(n, least)])


# --- parts ---------------------------------------------------------------------------------------


def _features(viewer: Viewer, index: Indices, both: bool = False) -> Arrays:
    """ "clean" and, if both are wanted, "perturbed" features (m, D) float32."""
    factors = viewer.loader.plan().factors[index]
    title = "transfer: images to test on" if both else "transfer: images to learn from"

    def answer(images: Images) -> dict[str, Tensor]:
        views = {"clean": None, "perturbed": factors[images.rows]} if both else {"clean": None}
        return {name: viewer.respond(images.pixels, f).features for name, f in views.items()}

    return viewer.columns(index, title, answer)


def _choice(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    settings: dict[str, object],
    cache: PartCache,
) -> float:
    """The C that is most accurate in cross-validation, of equals the smallest."""
    if (folds < 0).all():
        return CHOICES[len(CHOICES) // 2]
    of = {**settings, "folds": FOLDS}
    scores = [
        cache(f"folds-{c:g}", of, partial(fold_accuracy, c, features, targets, folds))["accuracy"]
        for c in CHOICES
    ]
    return CHOICES[int(np.argmax(np.mean(scores, axis=1)))]


# --- figures -------------------------------------------------------------------------------------


def _rows(
    index: Indices,
    paths: NDArray[np.str_],
    label: NDArray[np.int64],
    majority: int,
    answers: dict[str, Arrays],
) -> Rows:
    columns: Arrays = {"path": paths, "label": label}
    for name, predicted in answers.items():
        for view, suffix in (("clean", ""), ("perturbed", "_perturbed")):
            columns[f"predicted/{name}{suffix}"] = predicted[view]
            columns[f"correct/{name}{suffix}"] = (predicted[view] == label).astype(np.float64)
    flips = answers["probe"]["clean"] != answers["probe"]["perturbed"]
    columns["flips/probe"] = flips.astype(np.float64)
    columns["correct/majority"] = (label == majority).astype(np.float64)
    return Rows(index, columns)


def _measures(answers: dict[str, Arrays]) -> tuple[Measure, ...]:
    measures = []
    for name in answers:
        for suffix in ("", "_perturbed"):
            column = f"correct/{name}{suffix}"
            measures.append(Measure(Name(name, f"accuracy{suffix}"), "share", "test", (column,)))
    measures.append(Measure(Name("probe", "flips"), "share", "test", ("flips/probe",)))
    measures.append(Measure(Name("majority", "accuracy"), "share", "test", ("correct/majority",)))
    return tuple(measures)
