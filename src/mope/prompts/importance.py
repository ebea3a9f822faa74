"""The importance loss, which keeps a few experts from taking every sample (Eq. 5 and 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def importance_loss(scores: Sequence[Tensor], gamma: float = 0.1) -> Tensor:
    """Mean over layers of the squared coefficient of variation of the experts' importance.

    `Imp_j = sum over the batch of r_j` (Eq. 5); a layer's term is `(std(Imp) / mean(Imp))^2` where that is
    above gamma, else 0 (Eq. 6); std is the population's. Under data-parallel training Imp is summed over all
    workers first, so that the loss doesn't depend on how many there are.

    Args:
        scores: routing scores of each layer, (B, k) each.
        gamma: threshold below which an imbalance costs nothing.

    Returns:
        A scalar; 0 where there is nothing to route.
    """
    if not scores:
        return torch.zeros(())
    importance = torch.stack([layer.sum(dim=0) for layer in scores])
    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.nn.functional import all_reduce

        importance = all_reduce(importance)
    variation = importance.var(dim=1, correction=0) / importance.mean(dim=1).square()
    return torch.where(variation > gamma, variation, 0.0).mean()
