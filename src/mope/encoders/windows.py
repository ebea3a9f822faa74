"""Windowed attention (Swin): what its blocks compute anew in every pass, computed once.

The mask of a block's shifted windows depends on the picture's size alone, its position bias on its weights
alone. Hugging Face's Swin makes both anew in every block and pass, and adds them up for every window. The
values here are the same, so that the outputs of the bare model are bit for bit.
"""

from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.swin.modeling_swin import SwinLayer

from mope.encoders.families import ARGUMENT
from mope.errors import UserError
from mope.graphs import Cache

_WINDOWED = "_mope_windowed"
_shift_masks = Cache(32)


class FixedBias(nn.Module):
    """The position bias of a block whose table of it has stopped to learn, in the table's place.

    Args:
        bias: (1, H, N, N).
    """

    bias: Tensor

    def __init__(self, bias: Tensor):
        super().__init__()
        self.register_buffer("bias", bias, persistent=False)
        self._widened = Cache(2)

    def forward(self) -> Tensor:
        """The bias (1, H, N, N)."""
        return self.bias

    def train(self, mode: bool = True) -> "FixedBias":
        """Set the mode, and forget what was laid out for prompts."""
        self._widened.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "FixedBias":
        self._widened.clear()
        return super()._apply(*args, **kwargs)

    def widened(self, shift: Tensor | None, query: Tensor, prompts: int, pads: int, batch: int) -> Tensor:
        """As `wide_mask`; the last two results are kept, since a size of pictures comes again and again."""
        # A shift mask is known by its address, which is no other's while it is held beside the result.
        key = (prompts, pads, batch, query.dtype, query.device, id(shift))
        return self._widened.get(key, lambda: (_widen(self.bias, shift, query, prompts, pads, batch), shift))[
            0
        ]


def is_windowed(module: nn.Module) -> bool:
    """Whether an attention module is one that `share_masks` prepared."""
    return hasattr(module, _WINDOWED)


def share_masks(layer: nn.Module, attention: nn.Module) -> None:
    """Keep the masks of shifted windows between passes, for all blocks.

    With prompts, such a mask goes to the attention function on its own, which lays it out for prompts.
    """
    setattr(attention, _WINDOWED, True)
    block: Any = layer
    block.get_attn_mask = MethodType(_shift_mask, layer)
    attention.register_forward_pre_hook(_hand_over, with_kwargs=True)


def require_windows(config: Any, height: int, width: int) -> None:
    """Make sure that pictures fill the windows of every stage, which their position bias is made for.

    Raises:
        UserError: they don't; with a size that does.
    """
    window, patch, stages = config.window_size, config.patch_size, len(config.depths)
    side = -(-min(height, width) // patch)
    for stage in range(stages):
        if side < window:
            raise UserError(
                f"Pictures of {height} x {width} pixels are too small for this Swin: stage {stage + 1} would "
                f"be {side} wide, and its windows are {window}. Set the input's size to "
                f"{window * patch * 2 ** (stages - 1)} or more."
            )
        side = -(-side // 2)


def fix_bias(attention: Any) -> None:
    """Put a `FixedBias` in the place of a table that doesn't learn any more."""
    found = attention.relative_position_bias
    if not isinstance(found, FixedBias) and not any(p.requires_grad for p in found.parameters()):
        with torch.no_grad():
            attention.relative_position_bias = FixedBias(found())


def _shift_mask(
    self: Any, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    window, shift = int(self.window_size), int(self.shift_size)

    def make() -> Tensor | None:
        block: Any = SimpleNamespace(window_size=window, shift_size=shift)
        return SwinLayer.get_attn_mask(block, height, width, dtype=dtype, device=device)

    return _shift_masks.get((height, width, window, shift, dtype, device), make)


def _hand_over(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Take the shift mask out of a prompted attention's arguments, to be handed on beside them."""
    told = kwargs.get(ARGUMENT)
    if told is None:
        return None
    return (args[0], None, *args[2:]), {**kwargs, ARGUMENT: replace(told, shift=args[1])}


def wide_mask(
    module: Any, bias: Tensor, shift: Tensor | None, query: Tensor, prompts: int, pads: int, batch: int
) -> Tensor:
    """Bias and shift mask of every window, with room for prompts and pads in front.

    Args:
        module: the attention module.
        bias: its position bias (1, H, N, N).
        shift: additive mask of the shifted windows (windows, N, N), or None.
        query: (B * windows, H, N, d), for its dtype.
        prompts, pads: how many stand in front of the keys; prompts have no bias, pads no attention.
        batch: B.

    Returns:
        (B * windows or 1, H, N, prompts + pads + N).
    """
    if isinstance(module.relative_position_bias, FixedBias):
        return module.relative_position_bias.widened(shift, query, prompts, pads, batch)
    return _widen(bias, shift, query, prompts, pads, batch)


def _widen(bias: Tensor, shift: Tensor | None, query: Tensor, prompts: int, pads: int, batch: int) -> Tensor:
    wide = bias if shift is None else (bias + shift.unsqueeze(1)).repeat(batch, 1, 1, 1)
    wide = functional.pad(wide.to(query.dtype), (pads, 0), value=float("-inf"))
    return functional.pad(wide, (prompts, 0))
