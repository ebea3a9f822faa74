"""Rows of several models through the encoders that these share, in one pass each."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mope.encoders import EncoderOutput
from mope.encoders.tuning import Call
from mope.fusion.base import Batch, Fusion, FusionOutput, InRounds
from mope.prompts import MixedPrompts, prompt_shape

_IDS, _MASK = "input_ids", "attention_mask"
_PADDING = 256
"""Tokens of padding that a pass may have, whatever its texts' lengths: fewer cost less than another pass."""


def fuse_together(fusions: Sequence[Fusion], batches: Sequence[Batch]) -> list[FusionOutput]:
    """Fuse a batch of each model, as each would alone, to rounding.

    Prompts are per row, so an encoder that several models share runs once over all their rows; each row meets
    the prompts of its own model. Models whose encoders are their own, or whose prompts live on from layer to
    layer, run by themselves.

    Args:
        fusions: in eval mode; they may share encoders.
        batches: one for each.

    Returns:
        An output for each.
    """
    rounds = [(place, fusion) for place, fusion in enumerate(fusions) if isinstance(fusion, InRounds)]
    names = [(place, name) for place, fusion in rounds for name in fusion.guides]
    first = _run([fusions[place].encoder(name).call(batches[place][name]) for place, name in names])
    psi: dict[int, dict[str, Tensor]] = {place: {} for place, _ in rounds}
    for (place, name), output in zip(names, first, strict=True):
        psi[place][name] = output.pooled
    last = [fusion.last(batches[place], psi[place]) for place, fusion in rounds]
    outputs = iter(_run([call for one in last for call in one.calls]))
    found = {
        place: one.finish([next(outputs) for _ in one.calls])
        for (place, _), one in zip(rounds, last, strict=True)
    }
    return [
        found[place] if place in found else fusion(batches[place]) for place, fusion in enumerate(fusions)
    ]


def _run(calls: Sequence[Call]) -> list[EncoderOutput]:
    """What each of several calls gives; those that can share a pass do."""
    groups: dict[Hashable, list[int]] = {}
    for place, call in enumerate(calls):
        groups.setdefault(_group(call, place), []).append(place)
    found: dict[int, EncoderOutput] = {}
    for together in (some for group in groups.values() for some in _by_length(group, calls)):
        places = _by_shape(together, calls)
        some = [calls[place] for place in places]
        outputs = [some[0].run()] if len(some) == 1 else _run_as_one(some)
        found.update(zip(places, outputs, strict=True))
    return [found[place] for place in range(len(calls))]


def _by_length(places: Sequence[int], calls: Sequence[Call]) -> list[list[int]]:
    """Calls apart whose texts are much longer than others', which would be padded to their length."""
    apart: list[list[int]] = []
    rows = tokens = 0
    for place in sorted(places, key=lambda place: _length(calls[place])):
        own, length = _rows(calls[place].inputs), _length(calls[place])
        rows, tokens = rows + own, tokens + own * length
        if not apart or rows * length - tokens > max(_PADDING, tokens / 2):
            apart.append([])
            rows, tokens = own, own * length
        apart[-1].append(place)
    return apart


def _length(call: Call) -> int:
    """Of a text's rows; 0 for other inputs, which have one shape in a pass."""
    return call.inputs[_IDS].shape[1] if _IDS in call.inputs else 0


def _by_shape(places: Sequence[int], calls: Sequence[Call]) -> list[int]:
    """Those whose prompts can be stacked beside one another."""
    shapes: dict[Hashable, list[int]] = {}
    for place in places:
        shapes.setdefault(prompt_shape(calls[place].prompts), []).append(place)
    return [place for some in shapes.values() for place in some]


def _group(call: Call, place: int) -> Hashable:
    """What calls have in common that share a pass."""
    encoder = id(call.tuned.encoder)
    if call.prompts is not None and call.prompts.lives_on:
        return encoder, place
    texts = _are_texts(call.inputs)
    shapes = tuple(
        (name, value.dtype, "texts" if texts and value.ndim == 2 else tuple(value.shape[1:]))
        if isinstance(value, Tensor)
        else (name, value)
        for name, value in sorted(call.inputs.items())
    )
    return encoder, shapes


def _are_texts(inputs: Mapping[str, Any]) -> bool:
    """Whether rows can be made longer: texts whose padding, if any, stands behind them."""
    mask = inputs.get(_MASK)
    return _IDS in inputs and mask is not None and bool(mask[:, 0].all())


def _run_as_one(calls: Sequence[Call]) -> list[EncoderOutput]:
    """One pass over the rows of several calls."""
    encoder: Any = calls[0].tuned.encoder
    counts = [_rows(call.inputs) for call in calls]
    sources = [call.prompts for call in calls]
    prompts = None if all(source is None for source in sources) else MixedPrompts(sources, counts)
    inputs = {name: _joined([call.inputs[name] for call in calls]) for name in calls[0].inputs}
    output: EncoderOutput = encoder(**inputs, prompts=prompts)
    parts = zip(
        output.pooled.split(counts),
        output.tokens.split([count * (len(output.tokens) // sum(counts)) for count in counts]),
        _by_call(output.stages, counts),
        [None] * len(counts) if output.real is None else output.real.split(counts),
        strict=True,
    )
    return [call.settle(EncoderOutput(*part)) for call, part in zip(calls, parts, strict=True)]


def _rows(inputs: Mapping[str, Any]) -> int:
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor))


def _joined(values: Sequence[Any]) -> Any:
    """One argument for all: tensors behind one another, filled up to the longest with zeros, which no mask
    attends to."""
    if not isinstance(values[0], Tensor):
        return values[0]
    if values[0].ndim == 2:
        longest = max(value.shape[1] for value in values)
        values = [functional.pad(value, (0, longest - value.shape[1])) for value in values]
    return torch.cat(list(values))


def _by_call(stages: tuple[Tensor, ...], counts: list[int]) -> Iterable[tuple[Tensor, ...]]:
    """Feature maps of each call's rows."""
    return zip(*(stage.split(counts) for stage in stages), strict=True) if stages else [()] * len(counts)
