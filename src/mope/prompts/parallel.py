"""Sums over the rows of all data-parallel processes, through which gradients go."""

from typing import Any

import torch
from torch import Tensor, distributed


class _Sum(torch.autograd.Function):
    """What one process's sum does to all losses comes back to it: the gradient is summed up as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class _Rows:
    """Whether the rows of this process count: not a stand-in, where a small step leaves it none."""

    count = True


def let_rows_count(count: bool) -> None:
    """Say whether the rows of the passes to come count in sums over processes."""
    _Rows.count = count


def is_parallel() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_of_all(values: Tensor) -> Tensor:
    """The sum over processes of what each has of its rows; without others, the values."""
    if not is_parallel():
        return values
    total: Any = _Sum.apply(values if _Rows.count else values * 0)
    return total
