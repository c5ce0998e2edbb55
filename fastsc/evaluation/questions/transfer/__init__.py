"""The question transfer: `question` asks it, the other modules are what it alone needs."""
