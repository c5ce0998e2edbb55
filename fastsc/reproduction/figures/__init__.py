"""The figures of docs/reproduction.md, each drawn from plain numbers: what is public of them.

Every function returns the text of an SVG file, and the same numbers give the same bytes. The caller
says what a figure finds (its title), what its axes show, and how many seeds each label
stands for; nothing here knows of records or studies.
"""

from fastsc.plotting.sheet import Mark
from fastsc.reproduction.figures.effects import Row, effects
from fastsc.reproduction.figures.groups import Series, bars, by_perturbation
from fastsc.reproduction.figures.lines import Line, Panel, over_alpha, trajectories
from fastsc.reproduction.figures.plane import Goal, Point, Role, plane

__all__ = [
    "Goal", "Line", "Mark", "Panel", "Point", "Role", "Row", "Series", "bars", "by_perturbation",
    "effects", "over_alpha", "plane", "trajectories",
]  # fmt: skip
