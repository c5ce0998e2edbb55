"""The question explanations: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.explanations.question import explanations

__all__ = ["explanations"]
