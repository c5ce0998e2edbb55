"""The question shifts: `question` asks it, the other modules are what it alone needs."""
