"""The numbers behind the page's drawings."""

from __future__ import annotations

import numpy as np

from fastsc.evaluation.report.charts import cumulated


def test_the_curve_of_shares_is_over_all_images() -> None:
    ratios = np.array([0, 0, 0, 0, np.inf, np.inf, 1.5, 0.5, np.nan])
    x, y = cumulated(ratios, 0)  # on a logarithmic axis, where 0 has no place
    assert x.tolist() == [0.5, 0.5, 1.5]
    assert y.tolist() == [4 / 8, 5 / 8, 6 / 8]
    x, y = cumulated(ratios, -np.inf)
    assert x.tolist() == [0, 0, 0, 0, 0, 0.5, 1.5]
    assert y.tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8]


def test_no_curve_of_values_that_are_not_known_or_not_on_the_axis() -> None:
    for values in ([], [np.nan], [0.0, np.inf]):
        x, y = cumulated(np.array(values), 0)
        assert len(x) == len(y) == 0
