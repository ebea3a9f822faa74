"""What waits to be read, or for the model: each run's and caller's in a lane of its own, so that nobody waits
for another's load."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Lane(NamedTuple):
    """Where rows wait.

    Attributes:
        name: their run's.
        group: what lanes have in common whose rows can go through the model together.
        caller: whose rows they are, where callers have tokens of their own.
        serial: whether the model may run in one thread at a time, of all lanes that are so.
    """

    name: str = ""
    group: Hashable = None
    caller: str | None = None
    serial: bool = False

    @property
    def owner(self) -> tuple[str, str | None]:
        """Whose share of the queue its rows take: a run's and caller's, whichever version of the run."""
        return self.name, self.caller


ONLY = Lane()
"""The lane of who has but one."""


class FairQueue(Generic[Item]):
    """Items in lanes, which are taken in turn; within a lane, in order."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Lane, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def count(self, lane: Lane) -> int:
        """Items of a lane's owner."""
        return sum(len(items) for one, items in self._lanes.items() if one.owner == lane.owner)

    def ready(self, serial: bool = True) -> int:
        """Items that may be taken: all, or without those of serial lanes."""
        return sum(len(items) for lane, items in self._lanes.items() if serial or not lane.serial)

    def next(self, serial: bool = True) -> Lane | None:
        """The lane whose turn it is, if any has one; serial ones may be passed over, and keep their turn."""
        return next((lane for lane in self._lanes if serial or not lane.serial), None)

    def append(self, lane: Lane, item: Item) -> None:
        """Put an item behind its lane's."""
        self._lanes.setdefault(lane, deque()).append(item)

    def take(self, count: int, serial: bool = True) -> list[Item]:
        """Up to so many items: of the lane whose turn it is, see `next`, and in turn of all others of its
        group."""
        taken: list[Item] = []
        if (first := self.next(serial)) is None:
            return taken
        kind = first.group, first.serial
        while len(taken) < count:
            lanes = [lane for lane in self._lanes if (lane.group, lane.serial) == kind][: count - len(taken)]
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
