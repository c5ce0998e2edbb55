"""Alias for callers from Python: what they need of `fastsc.config.recipes`."""

from fastsc.config.recipes import configure, dump, load_recipe, recipe_names

__all__ = ["configure", "dump", "load_recipe", "recipe_names"]
