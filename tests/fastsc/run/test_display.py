"""Lines of a run where there is no terminal: of the first step, then two a minute."""

from __future__ import annotations

import pytest

from fastsc.run import console

FIGURES = {"loss": 1.0, "ds_relative": 0.25, "pairs_per_s": 640.4, "loader_wait": 0.07}


def test_lines_are_half_a_minute_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.Display(90) as display:
        for step, seconds in ((1, 0.1), (2, 29.8), (3, 0.3), (4, 29.9), (5, 0.2)):
            now += seconds
            display.step(step, 1, FIGURES)
    figures = "loss 1.000  ds_relative 0.250  640 pairs/s  wait 7 %"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"epoch 2  step {step}/90  {figures}" for step in (1, 3, 5)]
