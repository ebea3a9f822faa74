"""Heads: from fused features to a task's outputs."""

from mope.heads.linear import LinearHead

__all__ = ["LinearHead"]
