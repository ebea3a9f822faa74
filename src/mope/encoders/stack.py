"""An encoder's layers one at a time, for a method that does something between them.

What stands before and after the layers is the model's own forward pass, in which the layers are passed over:
no model's embeddings, masks, last norm or pooling are written again here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mope.encoders.among import put_in, take_out
from mope.encoders.base import EncoderOutput
from mope.encoders.families import ARGUMENT, Family

Visit = Callable[[nn.Module, tuple, dict[str, Any]], Tensor]
"""What is done instead of a layer: (layer, args, kwargs) -> its output."""

_instead: ContextVar[Visit | None] = ContextVar("mope_instead", default=None)


def make_steppable(layers: Sequence[nn.Module]) -> None:
    """Let layers be passed over."""
    for layer in layers:
        layer.forward = MethodType(_forward, layer)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    visit = _instead.get()
    return type(self).forward(self, *args, **kwargs) if visit is None else visit(self, args, kwargs)


class LayerStack:
    """The layers of an encoder over one batch, and what has become of the batch so far.

    Args:
        encode: runs a plain transformer over the batch.
        layers: its layers, which were made steppable.
        family: its row.
        checkpointing: whether activations are computed again in the backward pass.

    Attributes:
        hidden: tokens (B, N, d) that enter the next layer.
        depth: number of layers.
    """

    def __init__(
        self,
        encode: Callable[[], EncoderOutput],
        layers: Sequence[nn.Module],
        family: Family,
        checkpointing: bool = False,
    ):
        self._encode, self._layers, self._family, self._checkpointing = encode, layers, family, checkpointing
        self._arguments: list[tuple[tuple, dict[str, Any]]] = []
        self.depth, self._next = len(layers), 0
        entering: list[Tensor] = []

        def note(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
            entering.append(args[0])
            self._arguments.append((args[1:], kwargs))
            return args[0]

        self._pass_over(note)
        self.hidden = entering[0]

    def ask(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the next layer makes of tokens (B or 1, Q, d) among its own; they leave no trace.

        A bias (1, Q) is added to their attention logits.
        """
        return self._run(tokens, bias)[1]

    def advance(self, tokens: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Run the next layer, with tokens (B or 1, P, d) among its own, whose outputs are dropped."""
        self.hidden = self._run(tokens, bias)[0]
        self._next += 1

    def finish(self) -> EncoderOutput:
        """What the model makes of its last layer's output."""
        return self._pass_over(lambda layer, args, kwargs: self.hidden)

    def _run(self, tokens: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        layer: Any = self._layers[self._next]
        rest, kwargs = self._arguments[self._next]
        args = (self.hidden, *rest)
        if tokens is not None:
            tokens = tokens.to(self.hidden.dtype).expand(self.hidden.shape[0], -1, -1)
            args, kwargs, told = put_in(tokens, self._family, args, kwargs, bias=bias)
            if told.mask is not None:
                kwargs[ARGUMENT] = told
        if self._checkpointing and torch.is_grad_enabled():
            output: Any = checkpoint(layer.forward, *args, use_reentrant=False, **kwargs)
        else:
            output = layer.forward(*args, **kwargs)
        length = 0 if tokens is None else tokens.shape[1]
        return take_out(output, self._family, length)

    def _pass_over(self, visit: Visit) -> EncoderOutput:
        token = _instead.set(visit)
        try:
            with self._without_checkpoints():
                return self._encode()
        finally:
            _instead.reset(token)

    @contextmanager
    def _without_checkpoints(self) -> Iterator[None]:
        """A pass that does nothing must not be done again in the backward pass."""
        training = [layer.training for layer in self._layers]
        for layer in self._layers:
            layer.training = False
        try:
            yield
        finally:
            for layer, mode in zip(self._layers, training, strict=True):
                layer.training = mode
