"""How much a linear layer, or the nearest neighbours, read from features: scikit-learn's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.results.answers import Arrays

Features = NDArray[np.float32]  # (n, D)
Classes = NDArray[np.int64]  # (n,)

# C of scikit-learn: the inverse of the penalty's weight. Features are standardized, so that one
# range does for all networks; what the folds do not tell apart gets the smaller.
CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 3
MAX_ITER = 2_000


def probe(c: float) -> Any:
    """Standardization, then multinomial logistic regression with an L2 penalty, by L-BFGS."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MAX_ITER))


def folds_of(ranks: NDArray[np.int64], targets: Classes) -> NDArray[np.int64]:
    """(n,) the fold in which an image is judged; -1 for a class's only image, which never is.

    Args:
        ranks: (n,) an image's place in its class, from 0.
        targets: (n,) classes.
    """
    alone = np.bincount(targets)[targets] == 1
    return np.where(alone, -1, ranks % FOLDS)


def fold_accuracy(
    c: float, features: Features, targets: Classes, folds: NDArray[np.int64]
) -> Arrays:
    """ "accuracy" (k,) of a choice of C on each fold, by a probe of the others."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import PredefinedSplit, cross_val_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracies = cross_val_score(
            probe(c),
            features.astype(np.float64),
            targets,
            cv=PredefinedSplit(folds),
            scoring="accuracy",
            error_score="raise",
        )
    return {"accuracy": accuracies}


def fitted(c: float, features: Features, targets: Classes, tested: dict[str, Features]) -> Arrays:
    """What a probe of all training features answers to others.

    Args:
        c: The choice.
        features, targets: (n, D), (n,) of the training part.
        tested: Name -> (m, D).

    Returns:
        Name -> (m,) classes; "converged" ().
    """
    from sklearn.exceptions import ConvergenceWarning

    classifier = probe(c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(features.astype(np.float64), targets)
    answers = {name: classifier.predict(rows.astype(np.float64)) for name, rows in tested.items()}
    return {**answers, "converged": np.array(classifier[-1].n_iter_.max() < MAX_ITER)}


def nearest(k: int, features: Features, targets: Classes, tested: dict[str, Features]) -> Arrays:
    """The most frequent class among the k nearest by the cosine: name -> (m,) classes.

    Of classes that are equally frequent it is the first.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    classifier.fit(features.astype(np.float64), targets)
    return {name: classifier.predict(rows.astype(np.float64)) for name, rows in tested.items()}
