"""Rows that wait for the model: each run's in a lane of its own, so that no run waits for another's load."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Lane(NamedTuple):
    """Where a run's rows wait.

    Attributes:
        name: the run's.
        group: what lanes have in common whose rows can go through the model together.
    """

    name: str = ""
    group: Hashable = None


ONLY = Lane()
"""The lane of who has but one."""


class FairQueue(Generic[Item]):
    """Items in lanes, which are taken in turn; within a lane, in order."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Lane, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def count(self, name: str) -> int:
        """Items of a run, whichever of its versions they are for."""
        return sum(len(items) for lane, items in self._lanes.items() if lane.name == name)

    def append(self, lane: Lane, item: Item) -> None:
        """Put an item behind its lane's."""
        self._lanes.setdefault(lane, deque()).append(item)

    def take(self, count: int) -> list[Item]:
        """Up to so many items: of the lane whose turn it is, and in turn of all others of its group."""
        taken: list[Item] = []
        group = next(iter(self._lanes)).group if self._lanes else None
        while len(taken) < count:
            lanes = [lane for lane in self._lanes if lane.group == group][: count - len(taken)]
            if not lanes:
                break
            for lane in lanes:
                items = self._lanes[lane]
                taken.append(items.popleft())
                if items:
                    self._lanes.move_to_end(lane)
                else:
                    del self._lanes[lane]
        return taken

    def clear(self) -> list[Item]:
        """Take everything."""
        taken = [item for items in self._lanes.values() for item in items]
        self._lanes.clear()
        return taken
