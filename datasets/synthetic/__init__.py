"""Synthetic faces with complete ground truth: rendered from the built-in head, seeded, without any photograph."""

from .cache import CachedFaces, write_cache
from .dataset import SyntheticFaces

__all__ = ["CachedFaces", "SyntheticFaces", "write_cache"]
