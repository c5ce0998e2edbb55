"""Questions about any classifier: one function `(model, loader, …)` each.

Nothing heavy is imported here: the command's --help should not wait for torch.
"""

QUESTIONS = (
    "continuity",
    "neighbours",
    "embedding",
    "gradients",
    "robustness",
    "shifts",
    "explanations",
    "transfer",
    "bias",
    "pairs",
)
SIZED = tuple(q for q in QUESTIONS if q not in ("embedding", "pairs"))  # by a number of images
OPTIONAL = ("pairs",)  # asked where their data is given, and else not said to be left out
