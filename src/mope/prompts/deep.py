"""Vanilla deep prompts (Eq. 1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mope.prompts.kept import KeptPrompts, Projects
from mope.prompts.offsets import Start, make_offsets
from mope.prompts.source import Projected, PromptSource


def prompt_bound(embed_dim: int, patch_area: int = 1) -> float:
    """Bound eta of a prompt's uniform start (VPT, appendix A): `sqrt(6 / (3 * patch_area + embed_dim))`."""
    return math.sqrt(6 / (3 * patch_area + embed_dim))


class DeepPrompts(nn.Module, PromptSource):
    """Vanilla deep prompts (Eq. 1): l learned tokens per layer, the same for every sample.

    Args:
        layer_dims: width d_i of each layer.
        length: prompt length l.
        patch_area: pixels of a patch, for the start; 1 for an encoder without patches.
        dropout: dropout probability on the prompts.
        start: how loud they begin, see `Offsets`.
    """

    def __init__(
        self,
        layer_dims: Sequence[int],
        *,
        length: int,
        patch_area: int = 1,
        dropout: float = 0.1,
        start: Start = "published",
    ):
        super().__init__()
        bound = prompt_bound(layer_dims[0], patch_area)
        self.prompts = nn.ParameterList(
            torch.empty(length, dim).uniform_(-bound, bound) for dim in layer_dims
        )
        self.dropout = nn.Dropout(dropout)
        self.offsets = make_offsets(start, len(layer_dims), [length])
        self.projected = KeptPrompts()

    def settle(self, encoder: Projects) -> None:
        """Project all prompts by an encoder's layers, see `KeptPrompts.keep`."""
        self.projected.keep(self.prompts, encoder)

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        return self.projected.find(layer, x0)

    def rest(self, layer: int, x0: Tensor) -> None:
        return None

    def bias(self, layer: int) -> Tensor | None:
        return None if self.offsets is None else self.offsets(layer)

    def forward(self, layer: int, x0: Tensor) -> Tensor:
        """Prompts (B, l, d_i) of one layer for x0 (B, d_i)."""
        return self.dropout(self.prompts[layer].to(x0.dtype).expand(x0.shape[0], -1, -1))
