"""Salus: learn what healthy looks like; find what does not."""

__version__ = "0.1.0.dev0"
