"""The paper's experiments as sweeps of trainings, and the page that says what came of them.

A study (studies/*.yaml) names arms: options of `fastsc.train`. An arm and a seed make a run, a run
leaves a record: one small JSON file that holds everything a table or a figure shows of it. The
records of this project's own runs are committed; the page is made of records alone.
"""

STUDIES = (
    "cifar100", "cifar100-deep", "cifar100-choice", "cifar100-options", "colormnist", "imagenet",
)  # fmt: skip
