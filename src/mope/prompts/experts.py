"""Prompt experts and their mixture (Eq. 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """The k prompt experts E_j of every layer, and `P_d = sum_j r_j E_j` (Eq. 4).

    Args:
        layer_dims: width d_i of each layer of the main encoder.
        experts: number of experts k.
        length: prompt length l of each expert.
        bound: experts start from U(-bound, bound), see `prompt_bound`.
    """

    def __init__(self, layer_dims: Sequence[int], *, experts: int, length: int, bound: float):
        super().__init__()
        self.prompts = nn.ParameterList(
            torch.empty(experts, length, dim).uniform_(-bound, bound) for dim in layer_dims
        )

    def forward(self, layer: int, scores: Tensor) -> Tensor:
        """Mix one layer's experts.

        Args:
            layer: its index, from 0.
            scores: routing scores (B, k).

        Returns:
            Dynamic prompt P_d (B, l, d_i).
        """
        experts = self.prompts[layer]
        return (scores @ experts.flatten(1)).unflatten(-1, experts.shape[1:])
