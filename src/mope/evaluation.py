"""What metrics need of any number of rows: collected batch by batch, and no more kept than that."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mope.data.check import Problem
from mope.data.feed import Batch
from mope.errors import UserError
from mope.tasks import Task


class Outcomes(NamedTuple):
    """Of each row that could be used, what `Task.condense` gave, and which inputs it has.

    Attributes:
        logits, targets: of all these rows.
        codes: the place in `patterns` of each, int32.
        patterns: names of the inputs that rows have, such as `image+text`.
    """

    logits: Tensor
    targets: Tensor
    codes: Tensor
    patterns: list[str]

    def places(self) -> dict[str, Tensor]:
        """Places of the rows that have the same inputs, by what these are, in order of their names."""
        found = {name: (self.codes == code).nonzero().flatten() for code, name in enumerate(self.patterns)}
        return dict(sorted(found.items()))


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


def collect(batches: Iterable[Measured], name: str, skip: bool, report: Callable[[str], None]) -> Outcomes:
    """Put together what is measured.

    Args:
        batches: all of it, in order.
        name: what messages call the rows.
        skip: whether rows that can't be used are left out, which is said; else they are refused.
        report: takes what is said.

    Raises:
        UserError: a row can't be used and isn't skipped, or none can.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    patterns: dict[str, int] = {}
    bad, rows = _Bad(), 0
    for batch in batches:
        rows += batch.rows
        for problem in batch.problems:
            bad.add(problem)
        if batch.logits is None or batch.targets is None or (bad.refused and not skip):
            continue
        codes = [patterns.setdefault(pattern, len(patterns)) for pattern in batch.patterns]
        parts.append((batch.logits, batch.targets, torch.tensor(codes, dtype=torch.int32)))
    if bad.first_refused is not None and not skip:
        raise UserError(
            f"{name}: {bad.refused} of {rows} rows can't be used, such as {bad.first_refused}; list them all "
            "with `mope data check`, mend them, set data.bad_rows to skip, or `missing` of an input whose "
            "cells may be empty."
        )
    if not parts:
        raise UserError(f"{name}: none of its {rows} rows can be used; the first is {bad.first}.")
    if bad.count:
        report(f"{name}: skipped {bad.count} of {rows} rows; first {bad.first}.")
    logits, targets, codes = (torch.cat(part) for part in zip(*parts, strict=True))
    return Outcomes(logits, targets, codes, list(patterns))
