"""What is known of a scene beside its picture, and bears on what it shows: a shop, a date, a weight."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from mope.scenes.compose import COLOURS, Scene

SHOPS = ("Acorn", "Bell", "Cove")
LEAST_KINDS = 12 * len(SHOPS)
"""Kinds that there must be, so that each shop has enough for a scene."""

_GRAMS = 250
_MISSING = 0.05  # share of cells that are empty


@dataclass(frozen=True)
class Facts:
    """Where and when a picture was taken.

    Attributes:
        shop: one of `SHOPS`; each sells kinds of its own.
        day: of the year 2026; each quarter has tiles of two colours.
    """

    shop: int
    day: date

    def kinds(self, pool: Sequence[str]) -> Sequence[str]:
        """What the shop sells."""
        return pool[self.shop :: len(SHOPS)]

    @property
    def colours(self) -> tuple[str, ...]:
        """Of the quarter's tiles."""
        names, quarter = list(COLOURS), (self.day.month - 1) // 3
        return names[quarter], names[quarter + 2]

    def row(self, rng: random.Random, scene: Scene) -> dict[str, str]:
        """Cells of a table, some of them empty; `weight` is of all things of the commonest kind."""
        names = [thing.kind for thing in scene.things]
        most = max(names.count(name) for name in names)
        weight = _GRAMS * most + rng.gauss(0, _GRAMS / 8)
        cells = {"shop": SHOPS[self.shop], "taken": self.day.isoformat(), "weight": f"{weight:.0f}"}
        return {name: "" if rng.random() < _MISSING else cell for name, cell in cells.items()}


def draw_facts(rng: random.Random) -> Facts:
    """A shop and a day."""
    return Facts(rng.randrange(len(SHOPS)), date(2026, 1, 1) + timedelta(days=rng.randrange(365)))
