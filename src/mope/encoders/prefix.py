"""Prompts in front of a layer's keys and values.

A prompt's own output is dropped after each layer (Eq. 2 gives every layer fresh prompts), so prompts act only
as
keys and values: they are projected as the layer projects its own tokens, and nothing more is computed of
them. The reference, and the way for prompts whose outputs are wanted, is `among.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mope.encoders import kernels, windows
from mope.encoders.families import Family
from mope.prompts import Projected, PromptSource

ATTENTION = "mope_prefix"
"""Name of our attention function among transformers'."""

Watch = Callable[[Tensor, Tensor, Tensor | None, int], None]
"""Takes query and key (B, H, N, d), the mask, and how many keys stand before the layer's own tokens."""


@dataclass(frozen=True)
class Prefix:
    """What a layer tells its attention of prompts in front.

    Attributes:
        batch: B.
        states: the prompts as the layer's attention sees tokens, normed where it norms them, (B, P, d);
            None where all are `kept`.
        family: the model's row.
        kept: keys and values of prompts before these, which were projected beforehand, or None.
        bias: added to the logits of prompts, (B or 1, P), or None.
        shift: in a windowed encoder, the mask of its shifted windows, (windows, N, N), or None.
    """

    batch: int
    states: Tensor | None
    family: Family
    kept: Projected | None = None
    bias: Tensor | None = None
    shift: Tensor | None = None

    def project(self, attention: nn.Module) -> list[Projected]:
        """Keys and values of the prompts, in order."""
        made = None if self.states is None else project(self.family, attention, self.states)
        return [part for part in (self.kept, made) if part is not None]


def project(family: Family, attention: nn.Module, states: Tensor) -> Projected:
    """Keys and values of prompts (B, P, d), (B, P, H * d) each, by the layer's own projections."""
    if family.key == family.value:
        _, keys, values = getattr(attention, family.key)(states).chunk(3, dim=-1)
        return Projected(keys, values)
    kind = states.device.type
    if torch.is_autocast_enabled(kind) and states.dtype == torch.float32 and not states.requires_grad:
        # Once, instead of for keys and for values; their gradients are added up in float32.
        states = states.to(torch.get_autocast_dtype(kind))
    return Projected(getattr(attention, family.key)(states), getattr(attention, family.value)(states))


@dataclass(frozen=True)
class Among:
    """What a layer tells of prompts among its tokens, which `among.py` put there.

    Attributes:
        length: how many.
        mask: for attention, where the model itself has none, (B or 1, 1, N, N), or None.
        source: whoever wants their outputs, or None.
    """

    length: int
    mask: Tensor | None = None
    source: PromptSource | None = None


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mope: Prefix | Among | None = None,
    mope_watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the layer's prompts, if any, in front of the keys and values.

    Args:
        module: the attention module that is being run.
        query, key, value: (B, H, N, d); in a windowed encoder the first axis is B * windows, batch-major.
        attention_mask: None, or (B or 1, H or 1, N, N), boolean (True = attend) or additive.
        mope: what the layer has to tell.
        mope_watch: takes what is attended to, to draw it.
        kwargs: handed on.
    """
    if isinstance(mope, Among) and mope.mask is not None:
        attention_mask = mope.mask
    if not isinstance(mope, Prefix):
        if mope_watch is not None:
            mope_watch(query, key, attention_mask, 0)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompts = mope.project(module)
    batch, length = mope.batch, sum(part.keys.shape[1] for part in prompts)
    count = query.shape[0] // batch
    pads = kernels.padding(length + key.shape[2], query.device)
    if windows.is_windowed(module) and attention_mask is not None:
        mask = windows.wide_mask(module, attention_mask, mope.shift, query, length, pads, batch)
    else:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        mask = kernels.widen_mask(attention_mask, length, pads, query, key.shape[2], causal)
    if mope.bias is not None:
        mask = kernels.add_bias(mask, mope.bias, count, query.dtype, length + pads + key.shape[2])
    key = _in_front([part.keys for part in prompts], key, pads, count)
    value = _in_front([part.values for part in prompts], value, pads, count)
    if mope_watch is not None:
        mope_watch(query, key, mask, length + pads)
    return kernels.attend(module, query, key, value, mask, kwargs), None


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _in_front(prompts: list[Tensor], tokens: Tensor, pads: int, count: int) -> Tensor:
    """Prompts (B or 1, P, H * d) and pads in front of tokens: (B * windows, H, N, d) -> (..., H, K, d).

    The prompts are expanded batch-major, as the windows are: a window attends to its own image's prompts.
    """
    heads, width = tokens.shape[1], tokens.shape[3]
    tokens = tokens.transpose(1, 2).unflatten(0, (-1, count))
    parts = [part.to(tokens.dtype).unflatten(2, (heads, width)).unsqueeze(1) for part in prompts]
    if pads:
        parts.append(tokens.new_zeros(1, 1, pads, heads, width))
    # Not `len`: in a traced graph it would fix the batch.
    parts = [part.expand(tokens.shape[0], count, -1, -1, -1) for part in parts]
    return torch.cat([*parts, tokens], dim=2).flatten(0, 1).transpose(1, 2)
