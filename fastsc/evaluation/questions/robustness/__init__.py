"""The question robustness: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.robustness.question import robustness

__all__ = ["robustness"]
