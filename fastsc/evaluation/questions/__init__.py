"""The questions; each is a module, or a package with what it alone needs."""
