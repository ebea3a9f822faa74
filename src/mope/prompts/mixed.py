"""Prompts of several sources in one pass, each for its own rows."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mope.prompts.source import PromptSource


class MixedPrompts(PromptSource):
    """Asks each of several sources for the prompts of its rows.

    A source with fewer prompts than the longest, or none, gets room behind them that its rows don't see:
    minus infinity on the attention logits. So each row attends to what it would without the others.

    Args:
        sources: none of them `lives_on`; None for rows without prompts.
        counts: how many rows each has, in the order of the batch.
    """

    def __init__(self, sources: Sequence[PromptSource | None], counts: Sequence[int]):
        self.sources, self.counts = sources, list(counts)
        self._bias: dict[int, Tensor | None] = {}

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """Prompts (B, P, d_i) of one layer, P the longest source's."""
        parts, biases = [], []
        for source, rows in zip(self.sources, x0.split(self.counts), strict=True):
            prompts = None if source is None else source(layer, rows)
            parts.append(x0.new_zeros(len(rows), 0, x0.shape[1]) if prompts is None else prompts)
            biases.append(None if source is None else source.bias(layer))
        longest = max(part.shape[1] for part in parts)
        self._bias[layer] = self._joined(parts, biases, longest)
        return _cat([_padded(part, longest) for part in parts]) if longest else None

    def bias(self, layer: int) -> Tensor | None:
        return self._bias.pop(layer)

    def _joined(
        self, parts: Sequence[Tensor], biases: Sequence[Tensor | None], longest: int
    ) -> Tensor | None:
        """Everybody's bias, and where rows see nothing, (B, P); None for nothing."""
        if all(bias is None for bias in biases) and all(part.shape[1] == longest for part in parts):
            return None
        found = []
        for part, bias in zip(parts, biases, strict=True):
            rows, length = part.shape[:2]
            own = part.new_zeros(1, length) if bias is None else bias
            hidden = (0, longest - length)
            found.append(functional.pad(own.float(), hidden, value=float("-inf")).expand(rows, -1))
        return _cat(found)


def _padded(part: Tensor, length: int) -> Tensor:
    """Prompts (B, P, d) with room behind them."""
    return functional.pad(part, (0, 0, 0, length - part.shape[1])) if part.shape[1] < length else part


def _cat(parts: list[Tensor]) -> Tensor:
    """Rows of all parts, in the dtype of the first."""
    return torch.cat([part.to(parts[0].dtype) for part in parts])
