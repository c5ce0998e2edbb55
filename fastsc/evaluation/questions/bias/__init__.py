"""The question bias: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.bias.question import bias

__all__ = ["bias"]
