"""The question continuity: `question` asks it, the other modules are what it alone needs."""
