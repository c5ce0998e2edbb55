"""The question bias: `question` asks it, the other modules are what it alone needs."""
