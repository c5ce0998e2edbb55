"""The question shifts: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.shifts.question import shifts

__all__ = ["shifts"]
