"""The question transfer: `question` asks it, the other modules are what it alone needs."""

from fastsc.evaluation.questions.transfer.question import transfer

__all__ = ["transfer"]
