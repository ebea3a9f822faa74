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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mope.encoders import kernels, windows
from mope.encoders.families import Family, Insertion
from mope.errors import UserError
from mope.prompts import CarryingSource, PromptSource

ATTENTION = "mope_prefix"
SOURCE = "mope_source"
_PROMPTS = "mope_prompts"
_CALL = "mope_call"
_MASK = "mope_mask"
_HIDDEN = "mope_hidden"

KeysAndValues = Callable[[nn.Module], tuple[Tensor, Tensor]]
Watch = Callable[[Tensor, Tensor, Tensor | None, int], None]
"""Takes query and key (B, H, N, d), the mask, and how many keys stand before the layer's own tokens."""

_relayed: ContextVar[PromptSource | None] = ContextVar("mope_relayed", default=None)
_calls: ContextVar["dict[int, _Call] | None"] = ContextVar("mope_calls", default=None)


@dataclass(frozen=True)
class _Call:
    """What a layer is being run with: how many prompts among its tokens, and who wants their outputs."""

    length: int
    source: CarryingSource | None


@contextmanager
def relayed(source: PromptSource | None) -> Iterator[None]:
    """Let layers find a source that their model doesn't hand down."""
    token = _relayed.set(source)
    calls = _calls.set({})
    try:
        yield
    finally:
        _relayed.reset(token)
        _calls.reset(calls)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mope_prompts: KeysAndValues | None = None,
    mope_shift: Tensor | None = None,
    mope_mask: Tensor | None = None,
    mope_hidden: Tensor | None = None,
    mope_watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the layer's prompts, if any, in front of the keys and values.

    Args:
        module: the attention module that is being run.
        query, key, value: (B, H, N, d); in a windowed encoder the first axis is B * windows, batch-major.
        attention_mask: None, or (B or 1, H or 1, N, N), boolean (True = attend) or additive.
        mope_prompts: gives the keys and values of the prompts, (B, P, H * d) each.
        mope_shift: in a windowed encoder with prompts, the mask of its shifted windows, (windows, N, N).
        mope_mask: a mask to use where the model has none, (1, 1, N, N), boolean.
        mope_hidden: prompts that a row must not see, (B, P), boolean.
        mope_watch: takes what is attended to, to draw it.
        kwargs: handed on.
    """
    if attention_mask is None:
        attention_mask = mope_mask
    if mope_prompts is None:
        if mope_watch is not None:
            mope_watch(query, key, attention_mask, 0)
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
    if mope_hidden is not None:
        mask = kernels.hide(mask, mope_hidden, count, length + pads + key.shape[2])
    key = _in_front(prompt_keys, key, pads, count)
    value = _in_front(prompt_values, value, pads, count)
    if mope_watch is not None:
        mope_watch(query, key, mask, length + pads)
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
        ones = hidden.new_ones(1, 1, hidden.shape[1]).expand(hidden.shape[0], -1, -1)
        return torch.bmm(ones, hidden)[:, 0] / hidden.shape[1]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def install(layer: nn.Module, index: int, family: Family, norm: str | None, insertion: Insertion) -> None:
    """Let a layer ask the source for its prompts.

    By "prefix" their keys and values are handed to the layer's attention; by "tokens" they are put among the
    layer's tokens, and their outputs are stripped. A `CarryingSource` gets these outputs, so for it prompts
    are always tokens, where the family allows it.

    Args:
        layer: the layer.
        index: its index, which the source is asked with.
        family: the model's row.
        norm: path to what stands before the layer's attention, if anything does.
        insertion: how prompts whose outputs nobody wants are put in.
    """

    def insert(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        source, args, kwargs = _source(family, args, kwargs)
        if source is None:
            return args, kwargs
        carrying = _carrying(source) if family.tokens else None
        if carrying is not None and (queries := carrying.queries(index)) is not None:
            carrying.answer(index, _run_with(layer, family, queries, args, kwargs))
        prompts = source(index, _x0(family, args, kwargs))
        if prompts is None:
            return args, kwargs
        if insertion == "tokens" or carrying is not None:
            call = _Call(prompts.shape[1], carrying)
            if (calls := _calls.get()) is None:
                # Attention ignores arguments it doesn't know; this one tells `strip` what to take out again.
                kwargs[_CALL] = call
            else:
                calls[index] = call
            blind = 0 if carrying is None else carrying.blind
            return _put_in(prompts, family, args, kwargs, blind, getattr(source, "hidden", None))
        states = prompts if norm is None else layer.get_submodule(norm)(prompts)
        kwargs[_PROMPTS] = lambda attention: _project(attention, family, states)
        if (hidden := getattr(source, "hidden", None)) is not None:
            kwargs[_HIDDEN] = hidden
        return args, kwargs

    def strip(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        calls = _calls.get()
        call = kwargs.get(_CALL) if calls is None else calls.pop(index, None)
        if call is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden, prompts = _take_out(hidden, family, call.length)
        if call.source is not None:
            call.source.receive(index, prompts)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    _keep(layer, family)
    layer.register_forward_pre_hook(insert, with_kwargs=True)
    layer.register_forward_hook(strip, with_kwargs=True)


def _carrying(source: Any) -> CarryingSource | None:
    # Not `isinstance`, which takes a protocol apart anew for each layer of each pass.
    return source if hasattr(source, "receive") else None


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


def _put_in(
    prompts: Tensor,
    family: Family,
    args: tuple,
    kwargs: dict[str, Any],
    blind: int = 0,
    unseen: Tensor | None = None,
) -> tuple[tuple, dict[str, Any]]:
    """A layer's arguments with prompts (B, P, d) among its tokens, after the first where that is [CLS].

    Args:
        prompts: the tokens to put in.
        family: the model's row.
        args, kwargs: the layer's arguments, hidden states first.
        blind: how many of the first prompts may attend to one another only.
        unseen: prompts that a row must not see, (B, P), boolean.

    Raises:
        UserError: a mask is needed, and the model keeps masks from its attention.
    """
    first, hidden, length = _first(family), args[0], prompts.shape[1]
    kwargs["position_embeddings"] = _widen_rotations(kwargs.get("position_embeddings"), hidden, first, length)
    if kwargs["position_embeddings"] is None:
        del kwargs["position_embeddings"]
    own = _mask(args, kwargs)
    args = (torch.cat([hidden[:, :first], prompts, hidden[:, first:]], dim=1), *args[1:])
    mask = None if own is None else _widen(own, first, length)
    if blind or unseen is not None:
        count = args[0].shape[1]
        if mask is None:
            mask = torch.ones(1, 1, count, count, dtype=torch.bool, device=hidden.device)
        mask = _cover(mask, first, length, blind, unseen)
    if mask is None:
        return args, kwargs
    if len(args) > 1 and "attention_mask" not in kwargs and (own is not None or family.insertion == "tokens"):
        return (args[0], mask, *args[2:]), kwargs
    if own is None and family.relay:
        raise UserError(
            "This model keeps masks from its attention: prompts can't be blind in it, nor left out of a row."
        )
    kwargs["attention_mask" if own is not None or family.insertion == "tokens" else _MASK] = mask
    return args, kwargs


def _cover(mask: Tensor, first: int, length: int, blind: int, unseen: Tensor | None) -> Tensor:
    """A mask (B or 1, H, N, N) that hides all but each other from blind prompts, or prompts from a row."""
    count = mask.shape[-1]
    hides = torch.zeros(1, 1, count, count, dtype=torch.bool, device=mask.device)
    if blind:
        hides[:, :, first : first + blind] = True
        hides[:, :, first : first + blind, first : first + blind] = False
    if unseen is not None:
        columns = functional.pad(unseen, (first, count - first - length))
        hides = hides | columns[:, None, None]
    nothing = mask.new_full((), False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
    return torch.where(hides, nothing, mask)


def _take_out(hidden: Tensor, family: Family, length: int) -> tuple[Tensor, Tensor]:
    """A layer's output without the tokens that were put in, and those."""
    first = _first(family)
    tokens = torch.cat([hidden[:, :first], hidden[:, first + length :]], dim=1)
    return tokens, hidden[:, first : first + length]


def _run_with(layer: Any, family: Family, queries: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a layer makes of tokens (B, Q, d) put among its own, which stay as they are."""
    queries = queries.to(args[0].dtype).expand(args[0].shape[0], -1, -1)
    args, kwargs = _put_in(queries, family, args, dict(kwargs))
    output = layer.forward(*args, **kwargs)
    return _take_out(output[0] if isinstance(output, tuple) else output, family, queries.shape[1])[1]


def _first(family: Family) -> int:
    """How many tokens stand before prompts."""
    return 1 if family.x0 == "cls" else 0


def _source(
    family: Family, args: tuple, kwargs: dict[str, Any]
) -> tuple[PromptSource | None, tuple, dict[str, Any]]:
    """The source of this call, if any, and the layer's arguments without it, hidden states first."""
    kwargs = dict(kwargs)
    source = kwargs.pop(SOURCE, None)
    if family.relay:
        source = _relayed.get()
    if "hidden_states" in kwargs:
        args = (kwargs.pop("hidden_states"), *args)
    return source, args, kwargs


def _x0(family: Family, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The global feature (B, d) entering a layer."""
    real = None
    if family.x0 == "mean" and (mask := _mask(args, kwargs)) is not None:
        # What the last query may attend to is every real token, in a causal mask as well.
        real = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] >= 0
    return global_feature(args[0], family.x0, real)


def _mask(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A layer's attention mask (B, H, N, N) among its arguments, if it has one."""
    found = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
    return found if isinstance(found, Tensor) else None


def _widen(mask: Tensor, first: int, length: int) -> Tensor:
    """Make room for `length` prompts after the first token in both axes of a mask (B, H, N, N).

    All attend to prompts. Prompts attend to what the last query does, which is every real token.
    """
    before, after = mask.tensor_split([first], dim=3)
    room = mask.new_full((*mask.shape[:3], length), mask.dtype == torch.bool)
    mask = torch.cat([before, room, after], dim=3)
    before, after = mask.tensor_split([first], dim=2)
    return torch.cat([before, mask[:, :, -1:].expand(-1, -1, length, -1), after], dim=2)


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
