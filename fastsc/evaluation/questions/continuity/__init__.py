"""The question continuity: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.continuity.question import continuity

__all__ = ["continuity"]
