"""Prompts of several sources in one pass, each for its own rows."""

from collections.abc import Hashable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from mope.prompts.fusion import BoundPrompts
from mope.prompts.source import Projected, PromptSource
from mope.prompts.stacked import StackedPrompts


class MixedPrompts(PromptSource):
    """Asks each of several sources for the prompts of its rows.

    A source with fewer prompts than the longest, or none, gets room behind them that its rows don't see:
    minus infinity on the attention logits. So each row attends to what it would without the others.
    Neighbours of one shape are asked at once, see `StackedPrompts`.

    Args:
        sources: none of them `lives_on`; None for rows without prompts.
        counts: how many rows each has, in the order of the batch.
    """

    def __init__(self, sources: Sequence[PromptSource | None], counts: Sequence[int]):
        self.sources, self.counts = _stack(sources, counts)
        self._bias: dict[int, Tensor | None] = {}
        self._known: dict[int, int] = {}

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """Prompts (B, P, d_i) of one layer, P the longest source's."""
        return self._prompts(layer, x0, 0)

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        """What every source knows of as many prompts, (B, P', H * d) each; None where they know different
        numbers."""
        found = [None if source is None else source.kept(layer, x0) for source in self.sources]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or len({one.keys.shape[1] for one in known}) > 1:
            return None
        rows = [
            (one.keys.expand(count, -1, -1), one.values.expand(count, -1, -1))
            for one, count in zip(known, self.counts, strict=True)
        ]
        self._known[layer] = known[0].keys.shape[1]
        return Projected(*(_cat(list(parts)) for parts in zip(*rows, strict=True)))

    def rest(self, layer: int, x0: Tensor) -> Tensor | None:
        return self._prompts(layer, x0, self._known.pop(layer))

    def _prompts(self, layer: int, x0: Tensor, known: int) -> Tensor | None:
        """All prompts, or those behind the `known` first ones of every row."""
        parts, biases = [], []
        for source, rows in zip(self.sources, x0.split(self.counts), strict=True):
            ask = source if source is None or not known else source.rest
            prompts = None if ask is None else ask(layer, rows)
            parts.append(x0.new_zeros(len(rows), 0, x0.shape[1]) if prompts is None else prompts)
            biases.append(None if source is None else source.bias(layer))
        longest = max(part.shape[1] for part in parts)
        self._bias[layer] = self._joined(parts, biases, longest, known)
        return _cat([_padded(part, longest) for part in parts]) if longest else None

    def bias(self, layer: int) -> Tensor | None:
        return self._bias.pop(layer)

    def _joined(
        self, parts: Sequence[Tensor], biases: Sequence[Tensor | None], longest: int, known: int
    ) -> Tensor | None:
        """Everybody's bias, and where rows see nothing, (B, P), known prompts first; None for nothing."""
        if all(bias is None for bias in biases) and all(part.shape[1] == longest for part in parts):
            return None
        found = []
        for part, bias in zip(parts, biases, strict=True):
            rows, length = part.shape[:2]
            own = part.new_zeros(1, known + length) if bias is None else bias
            hidden = (0, longest - length)
            found.append(functional.pad(own.float(), hidden, value=float("-inf")).expand(rows, -1))
        return _cat(found)


def prompt_shape(source: PromptSource | None) -> Hashable:
    """What neighbours of a batch have in common whose prompts can be stacked; None for what can't be."""
    return source.prompts.shape if isinstance(source, BoundPrompts) else None


def _stack(
    sources: Sequence[PromptSource | None], counts: Sequence[int]
) -> tuple[list[PromptSource | None], list[int]]:
    """Sources, of which neighbours of one shape have become one; and how many rows each has."""
    found: list[PromptSource | None] = []
    rows: list[int] = []
    for shape, group in groupby(zip(sources, counts, strict=True), lambda pair: prompt_shape(pair[0])):
        pairs = list(group)
        alike = [source for source, _ in pairs if isinstance(source, BoundPrompts)]
        if shape is not None and len(alike) > 1:
            own = [count for _, count in pairs]
            pairs = [(StackedPrompts(alike, own), sum(own))]
        found += [source for source, _ in pairs]
        rows += [count for _, count in pairs]
    return found, rows


def _padded(part: Tensor, length: int) -> Tensor:
    """Prompts (B, P, d) with room behind them."""
    return functional.pad(part, (0, 0, 0, length - part.shape[1])) if part.shape[1] < length else part


def _cat(parts: list[Tensor]) -> Tensor:
    """Rows of all parts, in the dtype of the first."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.to(parts[0].dtype) for part in parts])
