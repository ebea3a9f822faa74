"""What is known of a picture beside what it shows: a shop, a date, a weight; and questions about these."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from mope.scenes.questions import Question

SHOPS = {"Acorn": 400.0, "Bell": 700.0, "Cove": 1000.0}
"""Each shop's limit in grams, above which a parcel of it is heavy."""

SEASONS = ("winter", "spring", "summer", "autumn")
_SEASON = (
    "in which season was the picture taken?",
    "what season was it?",
    "when in the year was this taken?",
)
_HEAVY = ("is the parcel heavy for this shop?", "does the parcel weigh more than the shop allows?")
_MISSING = 0.03  # share of cells that are empty


@dataclass(frozen=True)
class Facts:
    """A parcel of what a picture shows.

    Attributes:
        shop: one of `SHOPS`.
        taken: a day of 2025 or 2026.
        weight: in grams.
    """

    shop: str
    taken: date
    weight: float

    def row(self, rng: random.Random) -> dict[str, str]:
        """Cells of a table, a few of them empty."""
        cells = {"shop": self.shop, "taken": self.taken.isoformat(), "weight": f"{self.weight:.0f}"}
        return {name: "" if rng.random() < _MISSING else cell for name, cell in cells.items()}

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """One about the season, which the date tells, and one about the weight, whose limit is the shop's."""
        season = SEASONS[self.taken.month % 12 // 3]
        yield Question(rng.choice(_SEASON), "season", "season", season)
        heavy = "yes" if self.weight > SHOPS[self.shop] else "no"
        yield Question(rng.choice(_HEAVY), "heavy", "heavy", heavy)


def draw_facts(rng: random.Random) -> Facts:
    """A parcel: as often heavy as not."""
    shop = rng.choice(list(SHOPS))
    day = date(2025, 1, 1) + timedelta(days=rng.randrange(730))
    return Facts(shop, day, SHOPS[shop] + rng.uniform(-300, 300))
