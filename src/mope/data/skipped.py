"""Rows that are left out while others are read."""

import torch
from torch.utils.data import get_worker_info

_REASON = 500  # bytes kept of the first skipped row's reason


class SkippedRows:
    """How many rows were left out, and why the first was; a loader's workers count together.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int):
        self._counts = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()
        self._reason = torch.zeros(_REASON, dtype=torch.uint8).share_memory_()

    def apart(self) -> "SkippedRows":
        """A count of its own, for as many workers."""
        return SkippedRows(len(self._counts))

    def add(self, reason: str) -> None:
        """Count a row."""
        info = get_worker_info()
        self._counts[info.id if info is not None else 0] += 1
        if not self._reason[0]:
            content = reason.encode(errors="replace")[:_REASON]
            self._reason[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def sentence(self, table: str) -> str | None:
        """What to say of them; None where there are none."""
        total = int(self._counts.sum())
        if not total:
            return None
        rows = "row was" if total == 1 else "rows were"
        reason = bytes(self._reason.tolist()).rstrip(b"\0").decode(errors="ignore")
        return f"{table}: {total:,} {rows} skipped, over all epochs; the first is {reason}."
