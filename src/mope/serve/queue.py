"""What waits to be read, or for the model: each run's and caller's in a lane of its own, so that nobody waits
for another's load."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
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
    """Items in lanes: callers are taken in turn, of a caller its lanes, and of a lane its items in order.

    So who asks many runs is given no more of the model than who asks one.
    """

    def __init__(self) -> None:
        self._callers: OrderedDict[str | None, OrderedDict[Lane, deque[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for _, items in self._lanes())

    def _lanes(self) -> Iterator[tuple[Lane, deque[Item]]]:
        return ((lane, items) for lanes in self._callers.values() for lane, items in lanes.items())

    def count(self, lane: Lane) -> int:
        """Items of a lane's owner."""
        lanes = self._callers.get(lane.caller, {})
        return sum(len(items) for one, items in lanes.items() if one.owner == lane.owner)

    def ready(self, serial: bool = True) -> int:
        """Items that may be taken: all, or without those of serial lanes."""
        return sum(len(items) for lane, items in self._lanes() if serial or not lane.serial)

    def next(self, serial: bool = True) -> Lane | None:
        """The lane whose turn it is, if any has one; serial ones may be passed over, and keep their turn."""
        return next((lane for lane, _ in self._lanes() if serial or not lane.serial), None)

    def append(self, lane: Lane, item: Item) -> None:
        """Put an item behind its lane's."""
        self._callers.setdefault(lane.caller, OrderedDict()).setdefault(lane, deque()).append(item)

    def take(self, count: int, serial: bool = True) -> list[Item]:
        """Up to so many items: of the lane whose turn it is, see `next`, and in turn of all others of its
        group."""
        if (first := self.next(serial)) is None:
            return []
        kind = first.group, first.serial
        left = {
            caller: deque(lane for lane in lanes if (lane.group, lane.serial) == kind)
            for caller, lanes in self._callers.items()
        }
        taken: list[Item] = []
        while len(taken) < count and (callers := [caller for caller, lanes in left.items() if lanes]):
            for caller in callers[: count - len(taken)]:
                taken.append(self._take(caller, left[caller]))
        return taken

    def _take(self, caller: str | None, left: deque[Lane]) -> Item:
        """An item of the first of a caller's lanes, which is the last from then on, as the caller is."""
        lane, lanes = left.popleft(), self._callers[caller]
        items = lanes[lane]
        item = items.popleft()
        self._callers.move_to_end(caller)
        if items:
            lanes.move_to_end(lane)
            left.append(lane)
        else:
            del lanes[lane]
            if not lanes:
                del self._callers[caller]
        return item

    def clear(self) -> list[Item]:
        """Take everything."""
        taken = [item for _, items in self._lanes() for item in items]
        self._callers.clear()
        return taken
