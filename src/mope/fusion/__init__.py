"""Ways to wire encoders into one feature, by name."""

from mope.fusion.base import Fusion, FusionOutput
from mope.fusion.concat import Concat
from mope.fusion.inputs import Inputs
from mope.fusion.mutual import Mutual
from mope.fusion.pmf import Pmf
from mope.fusion.sequential import Sequential
from mope.fusion.unimodal import Unimodal

FUSIONS: dict[str, type[Fusion]] = {
    "sequential": Sequential,
    "mutual": Mutual,
    "unimodal": Unimodal,
    "concat": Concat,
    "inputs": Inputs,
    "pmf": Pmf,
}

__all__ = ["FUSIONS", "Concat", "Fusion", "FusionOutput", "Inputs", "Mutual", "Pmf", "Sequential", "Unimodal"]
