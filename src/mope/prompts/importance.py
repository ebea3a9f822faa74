"""The importance loss, which keeps a few experts from taking every sample (Eq. 5 and 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mope.prompts.parallel import sum_of_all


def importance_loss(scores: Sequence[Tensor], gamma: float = 0.1) -> Tensor:
    """Mean over layers of the squared coefficient of variation of the experts' importance.

    A layer's term is the `variation` of its `importance` where that is above gamma, else 0 (Eq. 6).
    Importance is that of all data-parallel workers, so the loss doesn't depend on how many there are.

    Args:
        scores: routing scores of each layer, (B, k) each.
        gamma: threshold below which an imbalance costs nothing.

    Returns:
        A scalar; 0 where there is nothing to route.
    """
    if not scores:
        return torch.zeros(())
    uneven = variation(importance(scores))
    return torch.where(uneven > gamma, uneven, 0.0).mean()


def importance(scores: Sequence[Tensor]) -> Tensor:
    """`Imp_j = sum over the batch of r_j` (Eq. 5) of every layer: (B, k) each -> (L, k).

    Under data-parallel training it is summed over all workers.
    """
    return sum_of_all(torch.stack([layer.sum(dim=0) for layer in scores]))


def variation(importance: Tensor) -> Tensor:
    """Squared coefficient of variation of importance, `(std(Imp) / mean(Imp))^2` (Eq. 6): (..., k) -> (...).

    std is the population's.
    """
    return importance.var(dim=-1, correction=0) / importance.mean(dim=-1).square()
