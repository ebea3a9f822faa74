"""Batch norm over all that a step sees, in however many processes."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mope.prompts.parallel import is_parallel, sum_of_all


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, C) or (B, C, ...), whose statistics are those of all data-parallel processes.

    So a training step doesn't depend on how many there are. PyTorch's `SyncBatchNorm` does the same on GPUs
    alone. A single value per channel has no statistics of its own: then the running ones are taken.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Norm a batch, (B, C, ...) -> (B, C, ...)."""
        if not self.training or not is_parallel():
            alone = self.training and input.numel() == input.shape[1]
            return self._by_running_statistics(input) if alone else super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        shape = [1, -1, *[1] * (input.ndim - 2)]
        sums = sum_of_all(
            torch.cat([values.sum(axes), values.new_tensor([values.numel() / values.shape[1]])])
        )
        count = sums[-1].detach()
        if count < 2:
            return self._by_running_statistics(input)
        mean = sums[:-1] / count
        # In a second round: a difference of squares would be rough where the mean is large.
        variance = sum_of_all((values - mean.view(shape)).square().sum(axes)) / count
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, variance * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else self.weight * scale
        # The mean first: `values * scale - mean * scale` loses what varies little about a large mean.
        normed = (values - mean.view(shape)) * scale.view(shape)
        return (normed if self.bias is None else normed + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def begin(self, features: Tensor) -> None:
        """Let the running statistics be those of some rows (N, C); one row alone has none."""
        if len(features) > 1:
            variance, mean = torch.var_mean(features.float(), dim=0)
            cast(Tensor, self.running_mean).copy_(mean)
            cast(Tensor, self.running_var).copy_(variance)

    def _follow(self, running: Any, found: Tensor) -> None:
        """Move a running statistic towards what was found."""
        running.lerp_(found.to(running.dtype), self.momentum)

    def _by_running_statistics(self, input: Tensor) -> Tensor:
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps
        )


def share_statistics(module: nn.Module) -> None:
    """Put a `BatchNorm` in the place of each batch norm within a module, with its weights and statistics."""
    for name, part in list(module.named_children()):
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d):
            old: Any = part
            norm = BatchNorm(old.num_features, old.eps, old.momentum)
            norm.load_state_dict(old.state_dict())
            setattr(module, name, norm)
        else:
            share_statistics(part)
