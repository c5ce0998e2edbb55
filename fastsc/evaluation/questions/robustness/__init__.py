"""The question robustness: `question` asks it, the other modules are what it alone needs."""
