"""The linear head of classification and regression (section IV-B)."""

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """One linear layer: fused feature (B, D) -> logits (B, C), in float32 whatever the autocast."""

    def __init__(self, feature_dim: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(feature_dim, outputs)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.linear(features.to(self.linear.weight.dtype)).float()
