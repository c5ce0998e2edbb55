"""What the measures of robustness, shifts, explanations, transfer and bias mean, by question."""

from __future__ import annotations

_FLOORS = {
    f"{score}_floor_{floor}": (
        f"{name} of the unchanged view’s map and {other}: what agreement means nothing.",
        f"mean s(m, {symbol})",
    )
    for score, name in (
        ("rank", "Rank correlation"),
        ("ssim", "Structural similarity"),
        ("overlap", "Overlap"),
    )
    for floor, other, symbol in (
        ("other", "that of another image", "mⱼ"),
        ("random", "its map by the network with random weights", "m of random weights"),
    )
}

MEANINGS: dict[str, dict[str, tuple[str, str]]] = {
    "robustness": {
        "accuracy": (
            "Share of the labelled images that are right unchanged and that an attack, with all "
            "its tries, fooled at no size up to this one, each attack by itself; “worst”: no "
            "attack of that norm. Sizes in 8-bit levels: the largest change of a value (linf), or "
            "the RMS over all values (l2). An upper bound: a better attack may find more.",
            "mean [min {ε : argmax z(x + δ_ε) ≠ y} > ε]",
        ),
        "photometric": (
            "Random: share of views in random colours of the box that are right. Worst: share of "
            "images that are right at every view the search looked at: random and Sobol points, "
            "steps along the gradient, and a local search.",
            "mean_x mean_c [argmax z(x at c) = y]; mean_x min_c [argmax z(x at c) = y]",
        ),
    },
    "shifts": {
        "accuracy": (
            "Share of labelled images whose best class is right under a shift: the corruptions of "
            "ImageNet-C, of which brightness and contrast are akin to the changes above, and "
            "colour casts. Of a kind the mean over "
            "severities, of a group the mean over its kinds.",
            "mean [argmax z(shift(x)) = y]",
        ),
        "ds_relative": (
            "How far a shift moves the representation, over the mean distance between different "
            "images; of a group the mean over its kinds.",
            "mean ‖f(x) − f(shift(x))‖₂ / mean ‖f(xᵢ) − f(xⱼ)‖₂",
        ),
    },
    "explanations": {
        "rank": (
            "Spearman’s correlation over pixels of the maps m of an image and m′ of its view in "
            "other colours, both of the logit of what the unchanged view is predicted as. “kept”, "
            "“changed”: of the images whose prediction is. A constant map has 0 with any other.",
            "mean ρ(m, m′)",
        ),
        "ssim": (
            "Structural similarity of the two maps, cut off at the 99th percentile of their "
            "magnitudes and moved to [0, 1].",
            "mean SSIM(m, m′)",
        ),
        "overlap": (
            "Share that the tenth of the pixels with the largest magnitudes have in common; "
            "unrelated maps have 0.1.",
            "mean |T(m) ∩ T(m′)| / |T|",
        ),
        **_FLOORS,
        "entropy": (
            "Entropy of |m| normalized to sum 1, over the logarithm of the N pixels: 1 is spread "
            "evenly.",
            "mean −Σ p ln p / ln N",
        ),
        "gini": (
            "Gini coefficient of |m|: 0 is spread evenly, near 1 a single pixel.",
            "mean Σᵢⱼ ||mᵢ| − |mⱼ|| / (2 N Σ |m|)",
        ),
        "insertion": (
            "Area under the confidence while pixels, the most important first, are put into the "
            "blurred image; large is good.",
            "mean ∫₀¹ pₖ ds",
        ),
        "deletion": (
            "Area under the confidence while pixels, the most important first, are replaced by the "
            "normalization’s mean colour; small is good.",
            "mean ∫₀¹ pₖ ds",
        ),
        "completeness_error": (
            "How far the sum of integrated gradients is from the change of the logit that it "
            "explains: what too few steps cost.",
            "mean |Σm − (zₖ(x) − zₖ(0))| / mean |zₖ(x) − zₖ(0)|",
        ),
    },
    "transfer": {
        "probe": (
            "Right answers, on another data set, of a multinomial logistic regression on frozen "
            "standardized features; C by three-fold cross-validation of the training part. "
            "“perturbed”: in other colours; “flips”: answers that change there.",
            "mean [argmax W f(x) = y]",
        ),
        "knn5": (
            "Right answers of the most frequent class among the 5 nearest training images, by the "
            "cosine of features.",
            "mean [mode of the 5 nearest = y]",
        ),
        "knn20": ("The same of the 20 nearest.", "mean [mode of the 20 nearest = y]"),
        "fine_tuned": (
            "Right answers of a copy that is trained as a whole with a fresh last layer.",
            "mean [argmax z̃(x) = y]",
        ),
        "majority": (
            "Right answers of always saying the training part’s largest class.",
            "mean [y = mode]",
        ),
    },
    "bias": {
        "accuracy": (
            "Share of Color MNIST’s test digits that are read right: in their class’s colour "
            "(aligned), a random one, another class’s (reversed).",
            "mean [argmax z(x) = y]",
        ),
        "gap": (
            "Aligned less reversed, digit by digit: 0 is a model that is as often right in either, "
            "which one that guesses is, too; read it beside the accuracy.",
            "mean ([right aligned] − [right reversed])",
        ),
        "probe": (
            "Share of digits whose colour, or shape, a logistic regression reads from standardized "
            "features; learned on one half of the digits in random colours, tested on the other. "
            "Chance is 1/10.",
            "mean [probe(f(x)) = colour or shape]",
        ),
        "pixels": (
            "The same of raw pixels instead of features.",
            "mean [probe(x) = colour or shape]",
        ),
        "axis": (
            "ds_relative with one kind changed alone, at its strength, both directions averaged; "
            "as many images of every class.",
            "mean ‖f(x) − f(x′)‖₂ / mean ‖f(xᵢ) − f(xⱼ)‖₂",
        ),
        "axis_flips": (
            "Share of predictions that flip there.",
            "mean [argmax z(x) ≠ argmax z(x′)]",
        ),
    },
}
