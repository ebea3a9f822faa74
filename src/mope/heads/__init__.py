"""Heads: from fused features to a task's outputs."""

from mope.heads.linear import LinearHead
from mope.heads.masks import MaskHead

__all__ = ["LinearHead", "MaskHead"]
