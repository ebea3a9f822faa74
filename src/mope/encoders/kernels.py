"""Which attention kernel to use, and how keys and masks are laid out for it.

The choice is made here and nowhere else, by device, training or inference, and mask; the figures behind it
are in `dev/LOG.md`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mope.graphs import Cache

# The CPU kernel of scaled dot-product attention takes the last `keys % 16` of a row one by one: 62 take twice
# as long as 64. Up to this many left over, filling up costs more than it saves.
_LANES, _LEFT_OVER = 16, 3
_SHORT = 256
_pad_masks = Cache(16)


def padding(keys: int, device: torch.device) -> int:
    """How many masked keys to add so that the kernel runs at full width; none in a graph of any length."""
    if torch.compiler.is_compiling():
        return 0
    left = keys % _LANES
    return _LANES - left if device.type == "cpu" and left > _LEFT_OVER else 0


def use_plain(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain matrix products beat the fused kernel: in training in bf16 on a CPU, up to a length.

    There the fused kernel's backward pass takes two to five times as long; in float32 it is faster, and
    from a few hundred keys on the scores are too large to keep.
    """
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    short = key.shape[2] <= _SHORT and value.dtype != torch.float32
    return learns and short and value.device.type == "cpu"


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor:
    """Attention of queries (B, H, N, d) over keys and values (B, H, K, d) -> (B, N, H, d).

    Args:
        module: the attention module that is being run.
        query, key, value: as the model made them, prompts and padding in front of keys and values.
        mask: None, or (B or 1, H or 1, N, K), boolean (True = attend) or additive.
        kwargs: the model's own arguments, such as `scaling` and `dropout`.
    """
    # Rotary embeddings leave queries and keys in float32 under autocast, beside values that aren't.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if use_plain(query, key, value):
        return plain_attention(query, key, value, mask, kwargs.get("scaling"), kwargs.get("dropout", 0.0))
    kwargs = {**kwargs, "is_causal": False}
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """Attention by matrix products, in the dtype of the query; as `attend`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        scores = (query * scale) @ key.transpose(2, 3)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask.to(scores.dtype)
        weights = functional.dropout(scores.softmax(dim=-1), dropout)
        return (weights @ value).transpose(1, 2).contiguous()


def add_bias(mask: Tensor | None, bias: Tensor, count: int, dtype: torch.dtype, keys: int) -> Tensor:
    """Add a bias to the logits of prompts, which stand in front of the keys.

    Args:
        mask: (B * count or 1, H or 1, N or 1, K), boolean or additive, or None.
        bias: (B or 1, P); minus infinity hides a prompt from a row.
        count: windows per row, batch-major.
        dtype: of an additive mask.
        keys: K.

    Returns:
        An additive mask.
    """
    if bias.shape[0] > 1:
        bias = bias.repeat_interleave(count, dim=0)
    wide = functional.pad(bias.to(dtype), (0, keys - bias.shape[1]))[:, None, None]
    if mask is None:
        return wide
    if mask.dtype == torch.bool:
        return wide.expand(torch.broadcast_shapes(wide.shape, mask.shape)).masked_fill(~mask, float("-inf"))
    return mask + wide


def widen_mask(
    mask: Tensor | None, prompts: int, pads: int, query: Tensor, keys: int, causal: bool
) -> Tensor | None:
    """Make room in a mask for prompts, which are always attended to, and pads, which never are.

    Args:
        mask: the model's own, (B or 1, H or 1, N, K), or None.
        prompts, pads: how many stand in front of the K keys, in this order.
        query: (B, H, N, d), for its dtype and device.
        keys: K.
        causal: whether a missing mask means a causal one.
    """
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], keys, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is None:
        make = partial(_hide_pads, prompts, pads, keys, query.device)
        return _pad_masks.get((prompts, pads, keys, query.device), make) if pads else None
    if mask.dtype == torch.bool:
        return functional.pad(functional.pad(mask, (pads, 0)), (prompts, 0), value=True)
    mask = mask.to(query.dtype)
    return functional.pad(functional.pad(mask, (pads, 0), value=float("-inf")), (prompts, 0))


def _hide_pads(prompts: int, pads: int, keys: int, device: torch.device) -> Tensor:
    """A mask (1, 1, 1, K) that hides pads alone; all layers of a model have the same."""
    mask = torch.ones(1, 1, 1, prompts + pads + keys, dtype=torch.bool, device=device)
    mask[..., prompts : prompts + pads] = False
    return mask
