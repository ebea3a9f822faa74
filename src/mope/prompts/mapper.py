"""The mapper from a complementary feature to one prompt token per layer (appendix A, Fig. 8)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mope.prompts.norm import BatchNorm


class Mapper(nn.Module):
    """f_m: `Linear -> BatchNorm -> GELU`, then one up-projection per distinct layer width.

    A Swin has four widths, a plain transformer one; the bottleneck is shared (appendix A).

    Args:
        feature_dim: width d_y of the complementary feature.
        layer_dims: width d_i of each layer of the main encoder.
        bottleneck: d_bot; by default ceil(d_y / 2).
    """

    def __init__(self, feature_dim: int, layer_dims: Sequence[int], bottleneck: int | None = None):
        super().__init__()
        bottleneck = math.ceil(feature_dim / 2) if bottleneck is None else bottleneck
        self.layer_dims = list(layer_dims)
        self.down = nn.Sequential(nn.Linear(feature_dim, bottleneck), BatchNorm(bottleneck), nn.GELU())
        # A norm takes its bias away again: its gradient is zero but for roundings, of which Adam makes whole
        # steps, and an evaluation, whose running mean lags behind, would see them.
        cast(nn.Linear, self.down[0]).bias.register_hook(torch.zeros_like)
        self.up = nn.ModuleDict({str(dim): nn.Linear(bottleneck, dim) for dim in sorted(set(layer_dims))})

    def begin(self, psi: Tensor) -> None:
        """Start from the features of some rows (N, d_y): their statistics are the norm's running ones.

        A training step norms by its batch. Whatever looks at the mapper before the first steps have moved the
        running statistics, as a head that begins as a probe does, would else see other prompts.
        """
        cast(BatchNorm, self.down[1]).begin(self.down[0](psi))

    def forward(self, psi: Tensor) -> list[Tensor]:
        """Map psi_y (B, d_y) to the mapped prompt P_m of every layer, a list of (B, 1, d_i)."""
        hidden = self.down(psi)
        by_width = {int(dim): up(hidden).unsqueeze(1) for dim, up in self.up.items()}
        return [by_width[dim] for dim in self.layer_dims]
