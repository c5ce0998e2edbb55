"""The way back to the weights of before: its points, and the farthest that holds."""

from __future__ import annotations

import pytest
import torch

from fastsc.training.drawback import HALVINGS, between, farthest, keeps


@pytest.mark.parametrize("edge", [0.0, 0.01, 1 / 32, 0.3, 0.5, 0.97, 1.0])
def test_the_farthest_share_that_holds_is_found_to_a_part_in_32(edge: float) -> None:
    asked = list[float]()

    def holds(share: float) -> bool:
        asked.append(share)
        return share <= edge

    share = farthest(holds)
    assert share <= edge < share + 2**-HALVINGS or share == edge == 1
    assert asked[0] == 1
    assert len(set(asked)) == len(asked) <= 1 + HALVINGS


def test_the_end_that_holds_asks_once() -> None:
    asked = list[float]()
    assert farthest(lambda share: not asked.append(share)) == 1  # type: ignore[func-returns-value]
    assert asked == [1.0]


def test_the_points_lie_on_the_line_and_its_ends_are_exact() -> None:
    before = {"w": torch.tensor([0.1, -3.0, 1e-30]), "n": torch.tensor(4)}
    after = {"w": torch.tensor([0.3, 1e8, float("inf")]), "n": torch.tensor(9)}
    for share, end in ((0.0, before), (1.0, after)):
        assert all(torch.equal(between(before, after, share)[name], end[name]) for name in end)
    middle = between(before, after, 0.25)
    assert middle["w"][:2].tolist() == pytest.approx([0.15, 0.25e8 - 2.25])
    assert middle["w"].dtype == torch.float32
    assert middle["n"] == 9


def test_what_keeps_a_bound() -> None:
    assert keeps(0.98, 0.2, 0.98)
    assert not keeps(0.97, 0.2, 0.98)
    assert not keeps(1.0, float("nan"), 0.98)


def test_what_is_no_weight_stays() -> None:
    """A mask of infinities, complex weights, and a state that is no tensor."""
    mask = torch.tensor([0.0, -float("inf")])
    before = {"mask": mask, "c": torch.tensor([1 + 1j]), "_extra_state": {"a": 1}}
    after = {"mask": mask.clone(), "c": torch.tensor([3 + 5j]), "_extra_state": {"a": 2}}
    middle = between(before, after, 0.5)
    assert torch.equal(middle["mask"], mask)
    assert middle["c"].tolist() == [2 + 3j]
    assert middle["_extra_state"] == {"a": 2}
