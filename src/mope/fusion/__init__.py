"""Ways to wire encoders into one feature, by name."""

from mope.fusion.base import Fusion, FusionOutput
from mope.fusion.sequential import Sequential
from mope.fusion.unimodal import Unimodal

FUSIONS: dict[str, type[Fusion]] = {"sequential": Sequential, "unimodal": Unimodal}

__all__ = ["FUSIONS", "Fusion", "FusionOutput", "Sequential", "Unimodal"]
