"""What didn't work: said once, and tried again after a while."""

import time
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

RETRY_SECONDS = 30.0
"""After which it is: what was wrong may have been the hub or a disk, and the files needn't change for it."""


class _Failure(NamedTuple):
    state: Hashable
    when: float
    line: str


class Failures:
    """Failures by the name of what failed.

    Args:
        report: takes what is said.
    """

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._found: dict[str, _Failure] = {}

    def left(self, name: str, state: Hashable) -> float:
        """Seconds until it is to be tried again; 0 or less where it may be, as where its files are others."""
        found = self._found.get(name)
        if found is None or found.state != state:
            return 0.0
        return found.when + RETRY_SECONDS - time.monotonic()

    def add(self, name: str, state: Hashable, line: str) -> None:
        """Note that it failed now, and say so if that is new."""
        before = self._found.get(name)
        self._found[name] = _Failure(state, time.monotonic(), line)
        if before is None or (before.state, before.line) != (state, line):
            self._report(line)

    def forget(self, name: str) -> None:
        """It works."""
        self._found.pop(name, None)

    def keep(self, names: Collection[str]) -> None:
        """Forget all but these."""
        for name in set(self._found) - set(names):
            self.forget(name)
