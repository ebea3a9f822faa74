"""Words for places, numbers and things."""

import random

from mope.scenes.compose import Cell

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_ROWS = {2: (("upper", "top"), ("lower", "bottom")), 3: (("upper", "top"), ("middle",), ("lower", "bottom"))}
_COLUMNS = {2: ("left", "right"), 3: ("left", "centre", "right")}


def place_words(rng: random.Random, cell: Cell, grid: int) -> str:
    """A cell in words: "upper left", "bottom right", "middle centre"."""
    return f"{rng.choice(_ROWS[grid][cell[0]])} {_COLUMNS[grid][cell[1]]}"


def place_name(cell: Cell, grid: int) -> str:
    """A cell by one name, however `place_words` says it."""
    return f"{_ROWS[grid][cell[0]][-1]} {_COLUMNS[grid][cell[1]]}"


def a(kind: str) -> str:
    """A kind with its article."""
    return f"{'an' if kind[0] in 'aeio' or kind.startswith('umb') else 'a'} {kind}"
