"""Prompts into attention: as keys and values in front (`prefix`), or as tokens (`tokens`).

A prompt's own output is dropped after each layer (Eq. 2 gives every layer fresh prompts), so prompts act only
as keys and values: the prefix path projects them and nothing more. Both paths are the same function of the
tokens, up to rounding; `tokens` is the reference, and the fallback where attention can't be reached.

Nothing is kept on a module between calls: the source travels through the model's own keyword arguments, so
that threads, gradient checkpointing and `torch.compile` see a plain function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mope.encoders.families import Family

ATTENTION = "mope_prefix"
SOURCE = "mope_source"
_PROMPTS = "mope_prompts"
_LENGTH = "mope_length"


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mope_prompts: Callable[[nn.Module], tuple[Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the layer's prompts, if any, in front of the keys and values.

    Args:
        module: the attention module that is being run.
        query, key, value: (B, H, N, d); in a windowed encoder the first axis is B * windows, batch-major.
        attention_mask: None, or (B or 1, H or 1, N, N), boolean (True = attend) or additive.
        mope_prompts: gives the keys and values of the prompts, (B, P, H * d) each.
        kwargs: handed on.
    """
    if mope_prompts is not None:
        prefix = [_heads(states, like=key) for states in mope_prompts(module)]
        key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
        if attention_mask is not None:
            # Prompts have no position and are never masked: zero bias, or "attend".
            attention_mask = functional.pad(
                attention_mask, (prefix[0].shape[2], 0), value=attention_mask.dtype == torch.bool
            )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _heads(states: Tensor, like: Tensor) -> Tensor:
    """(B, P, H * d) -> (B * windows, H, P, d), where `like` is (B * windows, H, N, d).

    The expansion is batch-major as the windows are, so that a window attends to its own image's prompts.
    """
    batch, length, _ = states.shape
    heads = states.view(batch, length, like.shape[1], like.shape[3]).transpose(1, 2)
    windows = like.shape[0] // batch
    return heads.repeat_interleave(windows, dim=0).to(like.dtype) if windows > 1 else heads.to(like.dtype)


def global_feature(hidden: Tensor, pooling: str, mask: Tensor | None = None) -> Tensor:
    """The global feature x0 or psi of tokens (B, N, D): the first, or the mean over real ones -> (B, D).

    Args:
        hidden: tokens (B, N, D).
        pooling: "cls" or "mean".
        mask: (B, N), nonzero for real tokens; None where all are.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def install_prefix(layer: nn.Module, index: int, family: Family) -> None:
    """Let a layer ask the source for its prompts and hand their keys and values to its attention."""
    norm = layer.get_submodule(family.norm) if family.norm else None

    def ask(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        prompts, args, kwargs = _ask(index, family, args, kwargs)
        if prompts is not None:
            states = prompts if norm is None else norm(prompts)
            kwargs[_PROMPTS] = lambda attention: (
                getattr(attention, family.key)(states),
                getattr(attention, family.value)(states),
            )
        return args, kwargs

    layer.register_forward_pre_hook(ask, with_kwargs=True)


def install_tokens(layer: nn.Module, index: int, family: Family) -> None:
    """Let a layer ask the source for its prompts, put them among its tokens, and strip their outputs."""
    first = 1 if family.pooling == "cls" else 0

    def insert(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        prompts, args, kwargs = _ask(index, family, args, kwargs)
        if prompts is None:
            return args, kwargs
        hidden, length = args[0], prompts.shape[1]
        # Attention ignores arguments it doesn't know; this one tells `strip` what to take out again.
        kwargs[_LENGTH] = length
        args = (torch.cat([hidden[:, :first], prompts, hidden[:, first:]], dim=1), *args[1:])
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None:
            mask = _widen(mask, first, length)
            args = (args[0], mask, *args[2:]) if len(args) > 1 else args
            kwargs = {**kwargs, "attention_mask": mask} if "attention_mask" in kwargs else kwargs
        return args, kwargs

    def strip(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        length = kwargs.get(_LENGTH, 0)
        hidden = torch.cat([hidden[:, :first], hidden[:, first + length :]], dim=1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layer.register_forward_pre_hook(insert, with_kwargs=True)
    layer.register_forward_hook(strip, with_kwargs=True)


def _ask(
    index: int, family: Family, args: tuple, kwargs: dict[str, Any]
) -> tuple[Tensor | None, tuple, dict[str, Any]]:
    """The layer's prompts (B, P, d), or None; and its arguments, hidden states first, without the source."""
    kwargs = dict(kwargs)
    source = kwargs.pop(SOURCE, None)
    if "hidden_states" in kwargs:
        args = (kwargs.pop("hidden_states"), *args)
    if source is None:
        return None, args, kwargs
    return source(index, global_feature(args[0], family.pooling)), args, kwargs


def _widen(mask: Tensor, first: int, length: int) -> Tensor:
    """Make room for `length` prompts after the first token in both axes of a mask (B, H, N, N)."""
    attend = mask.dtype == torch.bool
    for axis in (2, 3):
        shape = list(mask.shape)
        shape[axis] = length
        before, after = mask.tensor_split([first], dim=axis)
        mask = torch.cat([before, mask.new_full(shape, attend), after], dim=axis)
    return mask
