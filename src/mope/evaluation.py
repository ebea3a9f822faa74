"""What metrics need of any number of rows: collected batch by batch, and no more kept than that."""

from collections.abc import Callable, Iterable
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


def collect(
    batches: Iterable[Batch],
    forward: Callable[[Any], Tensor],
    task: Task,
    name: str,
    skip: bool,
    report: Callable[[str], None],
) -> Outcomes:
    """Go through rows once.

    Args:
        batches: the rows, read by a `ToMeasure`.
        forward: gives the logits of a batch's inputs.
        task: condenses them.
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
        rows += len(batch.numbers)
        for problem in batch.errors.values():
            bad.add(problem)
        if batch.inputs is None or (bad.refused and not skip):
            continue  # what is refused in the end is only counted
        labels = batch.inputs.pop("labels")
        kept = [batch.extras[place] for place in batch.good]
        originals = [extra.original for extra in kept] if task.dense else None
        logits, targets = task.condense(forward(batch.inputs), labels, originals)
        codes = [patterns.setdefault(extra.pattern, len(patterns)) for extra in kept]
        # A worker's tensor keeps a file open.
        parts.append((logits, targets.clone(), torch.tensor(codes, dtype=torch.int32)))
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
