"""Classifiers by name that also return their representation, and what is changed in them."""
