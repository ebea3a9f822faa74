"""Prompts into attention: as keys and values in front (`prefix`), or as tokens (`tokens`).

A prompt's own output is dropped after each layer (Eq. 2 gives every layer fresh prompts), so prompts act only
as keys and values: the prefix path projects them and nothing more. Both paths are the same function of the
tokens, up to rounding; `tokens` is the reference, and the fallback where attention can't be reached.

No source is kept on a module between calls: it travels through the model's own keyword arguments, so that
threads, gradient checkpointing and `torch.compile` see a plain function. The few models that keep keyword
arguments from their layers get it by a context variable, for the time of their forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mope.encoders import kernels, windows
from mope.encoders.families import Family
from mope.prompts import PromptSource

ATTENTION = "mope_prefix"
SOURCE = "mope_source"
_PROMPTS = "mope_prompts"
_LENGTH = "mope_length"

KeysAndValues = Callable[[nn.Module], tuple[Tensor, Tensor]]

_relayed: ContextVar[PromptSource | None] = ContextVar("mope_relayed", default=None)
_lengths: ContextVar[dict[int, int] | None] = ContextVar("mope_lengths", default=None)


@contextmanager
def relayed(source: PromptSource | None) -> Iterator[None]:
    """Let layers find a source that their model doesn't hand down."""
    token = _relayed.set(source)
    lengths = _lengths.set({})
    try:
        yield
    finally:
        _relayed.reset(token)
        _lengths.reset(lengths)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mope_prompts: KeysAndValues | None = None,
    mope_shift: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the layer's prompts, if any, in front of the keys and values.

    Args:
        module: the attention module that is being run.
        query, key, value: (B, H, N, d); in a windowed encoder the first axis is B * windows, batch-major.
        attention_mask: None, or (B or 1, H or 1, N, N), boolean (True = attend) or additive.
        mope_prompts: gives the keys and values of the prompts, (B, P, H * d) each.
        mope_shift: in a windowed encoder with prompts, the mask of its shifted windows, (windows, N, N).
        kwargs: handed on.
    """
    if mope_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt_keys, prompt_values = mope_prompts(module)
    batch, length, _ = prompt_keys.shape
    count = query.shape[0] // batch
    pads = kernels.padding(length + key.shape[2], query.device)
    if windows.is_windowed(module) and attention_mask is not None:
        mask = windows.wide_mask(module, attention_mask, mope_shift, query, length, pads, batch)
    else:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        mask = kernels.widen_mask(attention_mask, length, pads, query, key.shape[2], causal)
    key = _in_front(prompt_keys, key, pads, count)
    value = _in_front(prompt_values, value, pads, count)
    return kernels.attend(module, query, key, value, mask, kwargs), None


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _in_front(prompts: Tensor, tokens: Tensor, pads: int, count: int) -> Tensor:
    """Prompts (B, P, H * d) and pads in front of tokens: (B * windows, H, N, d) -> (..., H, K, d).

    The prompts are expanded batch-major, as the windows are: a window attends to its own image's prompts.
    """
    heads, width = tokens.shape[1], tokens.shape[3]
    prompts = functional.pad(prompts.to(tokens.dtype), (0, 0, 0, pads))
    prompts = prompts.unflatten(2, (heads, width)).unsqueeze(1).expand(-1, count, -1, -1, -1)
    tokens = tokens.transpose(1, 2).unflatten(0, (-1, count))
    return torch.cat([prompts, tokens], dim=2).flatten(0, 1).transpose(1, 2)


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
        # A product with ones: twice as fast as `mean` in bf16 on a CPU, and summed in float32 too.
        ones = hidden.new_ones(1, 1, hidden.shape[1]).expand(len(hidden), -1, -1)
        return torch.bmm(ones, hidden)[:, 0] / hidden.shape[1]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def install_prefix(layer: nn.Module, index: int, family: Family, norm: str | None) -> None:
    """Let a layer ask the source for its prompts and hand their keys and values to its attention.

    Args:
        layer: the layer.
        index: its index, which the source is asked with.
        family: the model's row.
        norm: path to what stands before the layer's attention, if anything does.
    """

    def ask(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        prompts, args, kwargs = _ask(index, family, args, kwargs)
        if prompts is not None:
            states = prompts if norm is None else layer.get_submodule(norm)(prompts)
            kwargs[_PROMPTS] = lambda attention: _project(attention, family, states)
        return args, kwargs

    _keep(layer, family)
    layer.register_forward_pre_hook(ask, with_kwargs=True)


def _project(attention: nn.Module, family: Family, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of prompts (B, P, d), by the layer's own projections."""
    if family.key == family.value:
        _, keys, values = getattr(attention, family.key)(states).chunk(3, dim=-1)
        return keys, values
    return getattr(attention, family.key)(states), getattr(attention, family.value)(states)


def _keep(layer: nn.Module, family: Family) -> None:
    """Set back before each forward pass what a forward pass may have changed."""
    if not family.restore:
        return
    kept = {name: getattr(layer, name) for name in family.restore}

    def restore(layer: nn.Module, args: tuple) -> None:
        for name, value in kept.items():
            setattr(layer, name, value)

    layer.register_forward_pre_hook(restore)


def install_tokens(layer: nn.Module, index: int, family: Family, norm: str | None) -> None:
    """Let a layer ask the source for its prompts, put them among its tokens, and strip their outputs."""
    first = 1 if family.x0 == "cls" else 0

    def insert(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        prompts, args, kwargs = _ask(index, family, args, kwargs)
        if prompts is None:
            return args, kwargs
        hidden, length = args[0], prompts.shape[1]
        # Attention ignores arguments it doesn't know; this one tells `strip` what to take out again.
        if (lengths := _lengths.get()) is None:
            kwargs[_LENGTH] = length
        else:
            lengths[index] = length
        kwargs["position_embeddings"] = _widen_rotations(
            kwargs.get("position_embeddings"), hidden, first, length
        )
        if kwargs["position_embeddings"] is None:
            del kwargs["position_embeddings"]
        mask = _mask(args, kwargs)
        args = (torch.cat([hidden[:, :first], prompts, hidden[:, first:]], dim=1), *args[1:])
        if mask is not None:
            mask = _widen(mask, first, length)
            if "attention_mask" in kwargs:
                kwargs["attention_mask"] = mask
            else:
                args = (args[0], mask, *args[2:])
        return args, kwargs

    def strip(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        lengths = _lengths.get()
        length = kwargs.get(_LENGTH, 0) if lengths is None else lengths.pop(index, 0)
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
    if family.relay:
        source = _relayed.get()
    if "hidden_states" in kwargs:
        args = (kwargs.pop("hidden_states"), *args)
    if source is None:
        return None, args, kwargs
    real = None
    if family.x0 == "mean" and (mask := _mask(args, kwargs)) is not None:
        # What the last query may attend to is every real token, in a causal mask as well.
        real = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] >= 0
    return source(index, global_feature(args[0], family.x0, real)), args, kwargs


def _mask(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A layer's attention mask (B, H, N, N) among its arguments, if it has one."""
    found = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
    return found if isinstance(found, Tensor) else None


def _widen(mask: Tensor, first: int, length: int) -> Tensor:
    """Make room for `length` prompts after the first token in both axes of a mask (B, H, N, N)."""
    attend = mask.dtype == torch.bool
    for axis in (2, 3):
        shape = list(mask.shape)
        shape[axis] = length
        before, after = mask.tensor_split([first], dim=axis)
        mask = torch.cat([before, mask.new_full(shape, attend), after], dim=axis)
    return mask


def _widen_rotations(
    rotations: tuple[Tensor, Tensor] | None, hidden: Tensor, first: int, length: int
) -> tuple[Tensor, Tensor] | None:
    """Make room for prompts, which aren't rotated, in rotary position embeddings (cos, sin), (B, N, d) each.

    A model whose rotations cover its patches only leaves other tokens alone by itself.
    """
    if rotations is None or rotations[0].shape[-2] != hidden.shape[1]:
        return rotations
    widened = []
    for table, neutral in zip(rotations, (1.0, 0.0), strict=True):
        before, after = table.tensor_split([first], dim=-2)
        room = table.new_full((*table.shape[:-2], length, table.shape[-1]), neutral)
        widened.append(torch.cat([before, room, after], dim=-2))
    return widened[0], widened[1]
