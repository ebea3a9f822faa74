"""A table in, a model out: what its columns hold, what is made of them, and how long it takes."""

from mope.planning.columns import Column
from mope.planning.fit import fit, plan
from mope.planning.plan import PRESETS, Plan, Preset

__all__ = ["PRESETS", "Column", "Plan", "Preset", "fit", "plan"]
