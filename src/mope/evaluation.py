"""Any number of rows measured batch by batch, of which no more is kept than metrics need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mope.data.check import Problem
from mope.data.feed import Batch
from mope.errors import UserError
from mope.tasks import Meter, Task


class Measured(NamedTuple):
    """What is kept of a batch's rows.

    Attributes:
        rows: how many there are.
        problems: of those that can't be used.
        logits, targets: what `Task.condense` gives of the others; None where these aren't wanted.
        patterns: which inputs each of the others has, such as `image+text`.
    """

    rows: int
    problems: list[Problem]
    logits: Tensor | None = None
    targets: Tensor | None = None
    patterns: tuple[str, ...] = ()


class _Bad:
    """How many rows can't be used, and the first of them."""

    def __init__(self) -> None:
        self.count = self.refused = 0
        self.first: Problem | None = None
        self.first_refused: Problem | None = None

    def add(self, problem: Problem) -> None:
        self.count += 1
        self.first = self.first or problem
        if not problem.missing:
            self.refused += 1
            self.first_refused = self.first_refused or problem


def measure(
    batches: Iterable[Batch], forward: Callable[[Any], Tensor], task: Task, skip: bool
) -> Iterator[Measured]:
    """Go through rows once, batch by batch.

    Args:
        batches: the rows, read by a `ToMeasure`.
        forward: gives the logits of a batch's inputs.
        task: condenses them.
        skip: whether rows that can't be used are left out; else what is behind one is only counted.
    """
    refused = False
    for batch in batches:
        problems = list(batch.errors.values())
        refused = refused or not all(problem.missing for problem in problems)
        if batch.inputs is None or (refused and not skip):
            yield Measured(len(batch.numbers), problems)
            continue
        labels = batch.inputs.pop("labels")
        kept = [batch.extras[place] for place in batch.good]
        originals = [extra.original for extra in kept] if task.dense else None
        logits, targets = task.condense(forward(batch.inputs), labels, originals)
        patterns = tuple(extra.pattern for extra in kept)
        # A worker's tensor keeps a file open.
        yield Measured(len(batch.numbers), problems, logits, targets.clone(), patterns)


class Summary:
    """Metrics of all rows, and of those that have the same inputs.

    Args:
        task: measures them.
        by_pattern: whether rows that have the same inputs are measured by themselves, too.

    Attributes:
        whole: of all rows.
        patterns: by names of the inputs that rows have, such as `image+text`.
    """

    def __init__(self, task: Task, by_pattern: bool):
        self.task, self.by_pattern = task, by_pattern
        self.whole = task.meter()
        self.patterns: dict[str, Meter] = {}

    def add(self, logits: Tensor, targets: Tensor, patterns: Sequence[str]) -> None:
        """Take what `Task.condense` gave of a batch's rows, and which inputs each has."""
        self.whole.add(logits, targets)
        for pattern in sorted(set(patterns)) if self.by_pattern else ():
            places = torch.tensor([place for place, own in enumerate(patterns) if own == pattern])
            self.patterns.setdefault(pattern, self.task.meter()).add(logits[places], targets[places])

    def metrics(self) -> dict[str, Any]:
        """By name, and `rows`; with patterns the same of each, in order, under `patterns`."""
        found: dict[str, Any] = _with_rows(self.whole)
        if self.by_pattern:
            found["patterns"] = {name: _with_rows(one) for name, one in sorted(self.patterns.items())}
        return found


def _with_rows(meter: Meter) -> dict[str, Any]:
    return {**meter.compute(), "rows": meter.rows}


def collect(
    batches: Iterable[Measured], summary: Summary, name: str, skip: bool, report: Callable[[str], None]
) -> None:
    """Sum up what is measured, of which nothing is held.

    Args:
        batches: all of it, in order.
        summary: takes it.
        name: what messages call the rows.
        skip: whether rows that can't be used are left out, which is said; else they are refused.
        report: takes what is said.

    Raises:
        UserError: a row can't be used and isn't skipped, or none can.
    """
    bad, rows = _Bad(), 0
    for batch in batches:
        rows += batch.rows
        for problem in batch.problems:
            bad.add(problem)
        if batch.logits is None or batch.targets is None or (bad.refused and not skip):
            continue
        summary.add(batch.logits.cpu(), batch.targets.cpu(), batch.patterns)
    if bad.first_refused is not None and not skip:
        raise UserError(
            f"{name}: {bad.refused} of {rows} rows can't be used, such as {bad.first_refused}; list them all "
            "with `mope data check`, mend them, set data.bad_rows to skip, or `missing` of an input whose "
            "cells may be empty."
        )
    if not summary.whole.rows:
        raise UserError(f"{name}: none of its {rows} rows can be used; the first is {bad.first}.")
    if bad.count:
        report(f"{name}: skipped {bad.count} of {rows} rows; first {bad.first}.")
