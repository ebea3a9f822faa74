"""What an encoder asks for its prompts, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Projected(NamedTuple):
    """Prompts as a layer's attention reads them.

    Attributes:
        keys, values: by the layer's own projections, (B or 1, P, H * d) each; 1 where they are every row's.
    """

    keys: Tensor
    values: Tensor


class PromptSource(ABC):
    """Gives each layer of an encoder its prompts.

    All that fusion and encoders know of each other. A source for one batch is made by whoever has the batch.

    Attributes:
        lives_on: whether its prompts are tokens that live on: then they always stand among the layer's
            tokens, where the family allows it, and `receive` gets what the layer made of them. Else a
            prompt's output is dropped (Eq. 2).
        blind: how many of its first prompts attend to one another only; for a source whose prompts live on.
    """

    lives_on: bool = False
    blind: int = 0

    @abstractmethod
    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """Prompts of a layer.

        Args:
            layer: its index, from 0.
            x0: global feature entering it, (B, d_i).

        Returns:
            (B, P, d_i), or None for a layer without.
        """

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        """The first prompts of a layer, where their keys and values are known already; arguments as above.

        Whoever takes them asks `rest` for the others, instead of asking for all.
        """
        return None

    def rest(self, layer: int, x0: Tensor) -> Tensor | None:
        """The prompts behind those that `kept` gives, (B, P', d_i); None for none."""
        return self(layer, x0)

    def bias(self, layer: int) -> Tensor | None:
        """What is added to the attention logits of all prompts just given, for every query and head.

        Returns:
            (B or 1, P), minus infinity for a prompt that a row must not see; None for nothing.
        """
        return None

    def receive(self, layer: int, outputs: Tensor) -> None:  # noqa: B027
        """Take what a layer made of prompts that live on, (B, P, d_i)."""


class PromptFunction(PromptSource):
    """A function as a source.

    Args:
        function: (layer, x0) -> prompts, as `PromptSource.__call__`.
        bias: of every layer's prompts, as `PromptSource.bias`.
    """

    def __init__(self, function: Callable[[int, Tensor], Tensor | None], bias: Tensor | None = None):
        self.function, self._bias = function, bias

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        return self.function(layer, x0)

    def bias(self, layer: int) -> Tensor | None:
        return self._bias
