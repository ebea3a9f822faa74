"""One attention layer as Appendix C sees it: maps of attention, with the prompts' part cut off."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A layer's attention over the tokens of M instances, to which prompts may be added.

    Attributes:
        queries: of the tokens, already divided by the root of the head's width, (M, H, N, c).
        logits: of the tokens among themselves, (M, H, N, N).
        keys: the layer's own way from prompts to their keys: (..., P, d) -> (..., H, P, c).
        width: d, of a prompt.
        scale: standard deviation of the entries of prompts that are drawn for it.
    """

    queries: Tensor
    logits: Tensor
    keys: Callable[[Tensor], Tensor]
    width: int
    scale: float

    @property
    def instances(self) -> int:
        """M."""
        return self.queries.shape[0]

    @property
    def bare(self) -> Tensor:
        """Attention without prompts, (M, H, N, N)."""
        return self.logits.softmax(dim=-1)

    def maps(self, prompts: Tensor, bias: Tensor | None = None) -> Tensor:
        """`A(x, P)`: attention of tokens to tokens beside prompts, whose own part is cut off (Appendix C).

        Args:
            prompts: of each instance, (..., M, P, d).
            bias: added to the prompts' logits, (P,).

        Returns:
            (..., M, H, N, N); a token's row sums to 1 less what its prompts take.
        """
        beside = torch.einsum("mhnc,...mhpc->...mhnp", self.queries, self.keys(prompts))
        if bias is not None:
            beside = beside + bias
        tokens = self.logits.expand(*beside.shape[:-1], -1)
        return torch.cat([beside, tokens], dim=-1).softmax(dim=-1)[..., beside.shape[-1] :]

    def some(self, count: int) -> "Layer":
        """The same with its first instances alone."""
        return Layer(self.queries[:count], self.logits[:count], self.keys, self.width, self.scale)


def random_layer(
    instances: int, generator: torch.Generator, tokens: int = 10, heads: int = 2, head_width: int = 8
) -> Layer:
    """A layer with random projections over random tokens, in float64."""
    width = heads * head_width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = normal(instances, tokens, width)
    query, key = (normal(width, width) / width**0.5 for _ in range(2))

    def project(states: Tensor, matrix: Tensor) -> Tensor:
        return (states @ matrix).unflatten(-1, (heads, head_width)).transpose(-3, -2)

    queries = project(states, query) / head_width**0.5
    logits = queries @ project(states, key).transpose(-1, -2)
    return Layer(queries, logits, lambda prompts: project(prompts, key), width, 2.0)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Frobenius norm of the difference of maps (..., H, N, N) -> (...)."""
    return (one - other).flatten(-3).norm(dim=-1)


def floor(bare: Tensor, wanted: Tensor) -> Tensor:
    """The least distance to wanted maps that any prompts at all can reach, (M, H, N, N) -> (M,).

    Prompts beside the tokens only scale each row of the bare map, by a number between 0 and 1: they never
    change how a token shares its attention among the tokens. So each row's best scale is a projection.
    """
    scales = (bare * wanted).sum(dim=-1) / bare.square().sum(dim=-1)
    return distance(bare * scales.clamp(0, 1).unsqueeze(-1), wanted)
