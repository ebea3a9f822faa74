"""Routing noise that depends on the step and on a row's place in it, not on which process has the row."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mope.prompts.router import Router


class StepNoise:
    """`eps ~ N(0, 1/k^2)` of Eq. 3 for every layer of a router, drawn by the seed and the step.

    So a training in several processes has the noise of one in a single process, a resumed one has that of an
    unbroken one, and a layer that is run again for the sake of memory has the same again.

    Args:
        seed: of the training.

    Attributes:
        draws: (L, B, k), see `Router.draw`, of this process's rows; None before the first step.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.draws: Tensor | None = None

    def draw(self, router: Router, key: str, rows: range, count: int) -> None:
        """Draw a step's noise.

        Args:
            router: which it is for.
            key: what the step is called.
            rows: places of this process's rows among all that the step has; none for a stand-in.
            count: how many these are.
        """
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {key}").getrandbits(63))
        found = router.draw(router.layers, count, generator=generator)
        own = found[:, rows.start : rows.stop] if rows else torch.zeros_like(found[:, :1])
        self.draws = own.to(router.keys.device)

    def __call__(self, layer: int) -> Tensor:
        """The noise of one layer, (B, k)."""
        assert self.draws is not None
        return self.draws[layer]


def routers(model: nn.Module) -> Iterator[Router]:
    """The routers within a model."""
    return (part for part in model.modules() if isinstance(part, Router))
