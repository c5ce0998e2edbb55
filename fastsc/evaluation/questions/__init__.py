"""The questions: each is a module, or a package with what serves it alone; none needs another."""
