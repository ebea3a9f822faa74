"""Where the last layer of the main image encoder looks (Fig. 4)."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mope.data.dataset import RowDataset
from mope.data.table import MemoryTable, Table
from mope.device import autocast
from mope.encoders import TransformerEncoder
from mope.encoders.families import follow
from mope.errors import UserError
from mope.fusion.base import taking_turns
from mope.model import FusionModel
from mope.predictor import Predictor

_Seen = tuple[Tensor, Tensor, Tensor | None, int]


def attention_of(predictor: Predictor, rows: Table | Sequence[Mapping[str, Any]]) -> NDArray[numpy.float32]:
    """Where the main encoder's last layer looks, (N, rows, columns): see `attention_maps`.

    Args:
        predictor: the run.
        rows: as `Predictor.predict` takes them; all of them can be used.

    Raises:
        UserError: the main input is no image, its encoder's attention can't be reached, or a row can't be
            used.
    """
    source = rows if isinstance(rows, Table) else MemoryTable(rows)
    maps = []
    for _, batch, errors in predictor.batches(RowDataset(source, predictor.readers)):
        if errors or batch is None:
            raise UserError(f"A row of {source.name} can't be used: {next(iter(errors.values()))}.")
        with autocast(predictor.precision, predictor.device):
            maps.append(attention_maps(predictor.model, predictor.to_device(batch)).float().cpu().numpy())
    return numpy.concatenate(maps)


@torch.no_grad()
def attention_maps(model: FusionModel, batch: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Attention over the picture's patches in the last layer of the main encoder, mean over its heads.

    In a plain transformer it is the class token's, or the mean over all tokens where there is no class
    token. In a Swin, which has none either, it is the mean over each window's tokens, and the windows are
    put back to where they were. What prompts get isn't shown, so that a map sums to less than 1.

    Where the model makes masks, no class token is read: there it is the mean over the patches inside the
    predicted mask, each as much as it is inside, over all patches where nothing is. In a Swin these look at
    their own windows alone, and windows without any are dark.

    Args:
        model: whose main input is an image.
        batch: its inputs, as `FusionModel.forward` takes them.

    Returns:
        (B, rows, columns), one number per patch.

    Raises:
        UserError: the main input is no image, or its encoder's attention can't be reached.
    """
    main = model.fusion.main
    encoder = model.fusion.encoder(main).encoder
    if not isinstance(encoder, TransformerEncoder) or encoder.kind != "image":
        raise UserError(f"Attention over a picture needs one as the main input, which '{main}' isn't.")
    if encoder.family.insertion == "tokens":
        name = encoder.backbone.config.model_type
        raise UserError(f"The attention of models of type '{name}' can't be reached to be shown.")
    layer = list(follow(encoder.backbone, encoder.family.layers))[-1]
    with taking_turns(model.fusion):
        with _watching(layer, encoder.family.attention) as seen:
            logits = model(**batch).logits
        if not seen:
            raise UserError("The model's last layer didn't attend to anything.")
        inside = logits > 0 if model.task.dense else None
        if not encoder.plain:
            return _stitched(layer, seen, inside)
    weights = _weights(seen["watched"])
    height, width = batch[main]["pixel_values"].shape[-2:]
    rows, columns = height // encoder.patch_size[0], width // encoder.patch_size[1]
    if inside is not None:
        shares = _shares(inside, (rows, columns)).flatten(1)
        weights = (shares.unsqueeze(1) @ weights[:, -rows * columns :]).squeeze(1)
    else:
        weights = weights[:, 0] if encoder.family.x0 == "cls" else weights.mean(dim=1)
    return weights[:, -rows * columns :].unflatten(1, (rows, columns))


def _shares(inside: Tensor, size: tuple[int, int]) -> Tensor:
    """How much each patch is inside a mask (B, H, W), as shares (B, rows, columns) of all that are; of a mask
    with nothing inside all patches alike."""
    found = functional.adaptive_avg_pool2d(inside.float(), size)
    found = torch.where(found.sum(dim=(1, 2), keepdim=True) > 0, found, torch.ones_like(found))
    return found / found.sum(dim=(1, 2), keepdim=True)


@contextmanager
def _watching(layer: nn.Module, attention: str) -> Iterator[dict[str, Any]]:
    """Take down what a layer's attention is called with, in this thread's passes within the block."""
    seen: dict[str, Any] = {}
    thread = threading.get_ident()  # others may run the same layer

    def watch(query: Tensor, key: Tensor, mask: Tensor | None, before: int) -> None:
        seen["watched"] = (query, key, mask, before)

    def hand_over(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "mope_watch": watch} if threading.get_ident() == thread else kwargs

    def take_size(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            seen["size"] = kwargs.get("input_dimensions", args[1] if len(args) > 1 else None)

    handles = [
        layer.get_submodule(attention).register_forward_pre_hook(hand_over, with_kwargs=True),
        layer.register_forward_pre_hook(take_size, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _weights(seen: _Seen) -> Tensor:
    """Mean over heads of the attention of queries to a layer's own tokens, (B, N, N), in float32."""
    query, key, mask, before = seen
    scores = query.float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
    if mask is not None:
        is_boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if is_boolean else scores + mask.float()
    return scores.softmax(dim=-1)[..., before:].mean(dim=1)


def _stitched(layer: Any, seen: Mapping[str, Any], inside: Tensor | None) -> Tensor:
    """Maps (B, rows, columns) of a Swin's last block, from its windows; of what is inside masks (B, H, W)."""
    height, width = seen["size"]
    side, shift = int(layer.window_size), int(layer.shift_size)
    down, across = -(-height // side), -(-width // side)
    # What each token gets, mean over those that look: (B * windows, side * side).
    weights = _weights(cast(_Seen, seen["watched"]))
    if inside is None:
        got = weights.mean(dim=1)
    else:
        whole = functional.pad(
            _shares(inside, (height, width)), (0, across * side - width, 0, down * side - height)
        )
        whole = whole.roll((-shift, -shift), dims=(1, 2))
        shares = whole.unflatten(2, (across, side)).unflatten(1, (down, side)).transpose(2, 3)
        got = (shares.flatten(3).flatten(0, 2).unsqueeze(1) @ weights).squeeze(1)
    maps = got.unflatten(0, (-1, down, across)).unflatten(3, (side, side))
    maps = maps.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if shift:
        maps = maps.roll((shift, shift), dims=(1, 2))
    return maps[:, :height, :width]
