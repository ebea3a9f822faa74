"""Prompts among a layer's tokens: put in before it, taken out after it.

The reference of `prefix.py`, the way for layers whose attention can't be reached, and for prompts whose
outputs are wanted.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mope.encoders.families import Family
from mope.encoders.prefix import Among


def put_in(
    prompts: Tensor,
    family: Family,
    args: tuple,
    kwargs: dict[str, Any],
    blind: int = 0,
    bias: Tensor | None = None,
) -> tuple[tuple, dict[str, Any], Among]:
    """Put prompts among a layer's tokens, after the first where that is [CLS].

    Args:
        prompts: (B, P, d).
        family: the model's row.
        args, kwargs: the layer's arguments, hidden states first.
        blind: how many of the first prompts may attend to one another only.
        bias: added to the logits of prompts, (B or 1, P), or None.

    Returns:
        The layer's arguments, and what the layer has to tell its attention.
    """
    first, hidden, length = tokens_before(family), args[0], prompts.shape[1]
    kwargs = dict(kwargs)
    rotations = _widen_rotations(kwargs.pop("position_embeddings", None), hidden, first, length)
    if rotations is not None:
        kwargs["position_embeddings"] = rotations
    given = mask_of(args, kwargs)
    args = (torch.cat([hidden[:, :first], prompts, hidden[:, first:]], dim=1), *args[1:])
    mask = None if given is None else _widen(given, first, length)
    if blind or bias is not None:
        count = args[0].shape[1]
        if mask is None:
            mask = torch.ones(1, 1, count, count, dtype=torch.bool, device=hidden.device)
        mask = _cover(mask, first, length, blind, bias)
    told = Among(length)
    if mask is None:
        return args, kwargs, told
    if given is None and family.insertion != "tokens" and not family.relay:
        return args, kwargs, replace(told, mask=mask)
    if len(args) > 1 and "attention_mask" not in kwargs:
        return (args[0], mask, *args[2:]), kwargs, told
    if family.adds_mask:
        mask = _additive(mask).to(hidden.dtype)
    return args, {**kwargs, family.mask: mask}, told


def take_out(hidden: Tensor, family: Family, length: int) -> tuple[Tensor, Tensor]:
    """Of a layer's output (B, N + P, d) the layer's tokens (B, N, d), and the prompts (B, P, d)."""
    first = tokens_before(family)
    tokens = torch.cat([hidden[:, :first], hidden[:, first + length :]], dim=1)
    return tokens, hidden[:, first : first + length]


def tokens_before(family: Family) -> int:
    """How many tokens stand before prompts."""
    return 1 if family.x0 == "cls" else 0


def mask_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A layer's attention mask (B, H, N, N) among its arguments, if it has one."""
    found = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
    return found if isinstance(found, Tensor) else None


def _cover(mask: Tensor, first: int, length: int, blind: int, bias: Tensor | None) -> Tensor:
    """A mask (B or 1, H, N, N) in which blind prompts see only each other, and prompts have a bias."""
    count = mask.shape[-1]
    if blind:
        hides = torch.zeros(1, 1, count, count, dtype=torch.bool, device=mask.device)
        hides[:, :, first : first + blind] = True
        hides[:, :, first : first + blind, first : first + blind] = False
        nothing = mask.new_full((), False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
        mask = torch.where(hides, nothing, mask)
    if bias is None:
        return mask
    mask = _additive(mask)
    return mask + functional.pad(bias.to(mask.dtype), (first, count - first - length))[:, None, None]


def _additive(mask: Tensor) -> Tensor:
    """A mask to be added to logits, of one that may be boolean."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


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
