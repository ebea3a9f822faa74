"""How loud prompts begin: a learned offset on their attention logits."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Start = Literal["published", "quiet"]
"""Published prompts begin at random and are attended to like any token; quiet ones hardly are at first."""

QUIET = -3.0
"""Where the offsets of quiet prompts begin: a prompt gets `exp(-3)`, a twentieth, of the attention."""


class Offsets(nn.Module):
    """One learned offset for each layer and kind of prompt, added to the attention logits of these prompts.

    Random prompts take attention from a frozen encoder's own tokens in every layer, before they are of any
    use. LLaMA-Adapter (arXiv 2303.16199) gates them from zero for that; an offset in the logits does the same
    inside the softmax, so it costs nothing where there is a mask anyway, and is exact in every encoder.

    Args:
        layers: number of layers.
        lengths: how many prompts there are of each kind, in the order in which they stand.
        value: where the offsets begin.
    """

    def __init__(self, layers: int, lengths: Sequence[int], value: float = QUIET):
        super().__init__()
        self.lengths = list(lengths)
        self.values = nn.Parameter(torch.full((layers, len(self.lengths)), value))

    def forward(self, layer: int) -> Tensor:
        """What is added to the logits of one layer's prompts, (1, P)."""
        values = self.values[layer].unbind()
        parts = [value.expand(length) for value, length in zip(values, self.lengths, strict=True)]
        return torch.cat(parts).unsqueeze(0)


def make_offsets(start: Start, layers: int, lengths: Sequence[int]) -> Offsets | None:
    """The offsets of prompts with this start; None for prompts as published, which have none."""
    return Offsets(layers, lengths) if start == "quiet" and sum(lengths) else None
