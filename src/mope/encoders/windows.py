"""Windowed attention (Swin): what its blocks compute anew in every pass, computed once.

A block's position bias depends on its weights alone, the mask of its shifted windows on the picture's size
alone. Hugging Face's Swin makes both anew in every block and pass, and adds them up for every window.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mope.frozen import cache_of, version

_SHARED = "_mope_shared"


def is_windowed(module: nn.Module) -> bool:
    """Whether an attention module is one that `share_masks` prepared."""
    return hasattr(module, _SHARED)


def share_masks(layer: nn.Module, attention: nn.Module) -> None:
    """Keep a Swin block's shift mask and position bias between passes.

    The values are the same, so that the outputs of the bare model are bit for bit. With prompts, the shift
    mask goes to the attention function on its own, which keeps the sum of both laid out for prompts.
    """
    setattr(attention, _SHARED, True)
    block: Any = layer
    block.get_attn_mask = MethodType(_shift_mask, layer)
    bias: Any = attention.relative_position_bias
    bias.forward = MethodType(_position_bias, bias)
    attention.register_forward_pre_hook(_hand_over, with_kwargs=True)


def _shift_mask(
    self: Any, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    def make() -> Tensor | None:
        return type(self).get_attn_mask(self, height, width, dtype=dtype, device=device)

    if torch.compiler.is_compiling():
        return make()
    mode = torch.is_inference_mode_enabled()
    return cache_of(self).keep((height, width, self.window_size, self.shift_size, dtype, device, mode), make)


def _position_bias(self: Any) -> Tensor:
    now = version(*self.parameters())
    return (
        type(self).forward(self)
        if now is None
        else cache_of(self).keep(now, lambda: type(self).forward(self))
    )


def _hand_over(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Take the shift mask out of a prompted attention's arguments, to be handed on beside them."""
    if kwargs.get("mope_prompts") is None:
        return None
    return (args[0], None, *args[2:]), {**kwargs, "mope_shift": args[1]}


def wide_mask(
    module: nn.Module,
    bias: Tensor,
    shift: Tensor | None,
    query: Tensor,
    prompts: int,
    pads: int,
    batch: int,
) -> Tensor:
    """Bias and shift mask of every window, with room for prompts and pads in front.

    Args:
        module: the attention module, which keeps the result.
        bias: position bias (1, H, N, N).
        shift: additive mask of the shifted windows (windows, N, N), or None.
        query: (B * windows, H, N, d), for its dtype.
        prompts, pads: how many stand in front of the keys; prompts have no bias, pads no attention.
        batch: B.

    Returns:
        (B * windows or 1, H, N, prompts + pads + N).
    """

    def make() -> Tensor:
        wide = bias if shift is None else (bias + shift.unsqueeze(1)).repeat(batch, 1, 1, 1)
        wide = functional.pad(wide.to(query.dtype), (pads, 0), value=float("-inf"))
        return functional.pad(wide, (prompts, 0))

    now = version(*module.get_submodule("relative_position_bias").parameters())
    if now is None:
        return make()
    # `_shift_mask` keeps the mask, so its address stands for its content.
    shifted = None if shift is None else (shift.data_ptr(), batch)
    return cache_of(module).keep((now, shifted, prompts, pads, query.dtype, query.device), make)
