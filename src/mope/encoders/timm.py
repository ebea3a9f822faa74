"""timm's models, as transformers wraps them: ViTs by tokens, Swins as transformers' own, others black boxes.

A Swin's windows are cut inside timm's block, where no prompt can reach them, so its weights are moved into
transformers' model, which is the same function (tested).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import SwinConfig, SwinModel

from mope.encoders.base import Encoder
from mope.encoders.blackbox import BlackBoxEncoder
from mope.encoders.families import Pooling
from mope.encoders.transformer import TransformerEncoder
from mope.errors import UserError


def timm_encoder(model: Any, pooling: Pooling | None = None, projection: int | None = None) -> Encoder:
    """The encoder of a `TimmWrapperModel`.

    Args:
        model: its ViT takes prompts by tokens, its Swin as any Swin; of others the pooled feature is taken.
        pooling: see `TransformerEncoder`.
        projection: see `BlackBoxEncoder`.

    Raises:
        UserError: a Swin whose windows aren't square.
    """
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    inner = model.timm_model
    if isinstance(inner, SwinTransformer):
        return TransformerEncoder(swin_from_timm(inner, model.config), pooling=pooling)
    if isinstance(inner, VisionTransformer) and all(hasattr(block.attn, "qkv") for block in inner.blocks):
        return TransformerEncoder(model, pooling=pooling)
    if pooling is not None:
        raise UserError(f"timm's {type(inner).__name__} pools as it was trained to: leave `pooling` out.")
    encoder = BlackBoxEncoder(
        model, dim=inner.head_hidden_size, output="pooler_output", projection=projection
    )
    encoder.commit = getattr(model.config, "_commit_hash", None)
    return encoder


def vit_arguments(config: Any) -> Any:
    """Let a timm ViT take images of any size, as transformers' do."""
    if config.model_type == "timm_wrapper" and _is_vit(config.architecture):
        config.model_args = {"dynamic_img_size": True, **(config.model_args or {})}
    return config


def _is_vit(architecture: str) -> bool:
    import timm

    name = architecture.partition(".")[0]
    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__.endswith(
        "vision_transformer"
    )


def swin_from_timm(model: Any, config: Any = None) -> SwinModel:
    """transformers' Swin with the weights of timm's."""
    stages = list(model.layers)
    attention = stages[0].blocks[0].attn
    window, patch = attention.window_size, model.patch_embed.patch_size
    windows = {tuple(block.attn.window_size) for stage in stages for block in stage.blocks}
    if len(windows) > 1 or window[0] != window[1] or patch[0] != patch[1]:
        raise UserError(
            "A timm Swin is supported if its windows and patches are square and of one size in all stages; "
            f"this one's windows are {', '.join(f'{h} x {w}' for h, w in sorted(windows))}."
        )
    settings = SwinConfig(
        image_size=model.patch_embed.img_size[0],
        patch_size=patch[0],
        embed_dim=stages[0].blocks[0].dim,
        depths=[len(stage.blocks) for stage in stages],
        num_heads=[stage.blocks[0].attn.num_heads for stage in stages],
        window_size=window[0],
        mlp_ratio=stages[0].blocks[0].mlp.fc1.out_features / stages[0].blocks[0].dim,
        layer_norm_eps=model.norm.eps,
    )
    if config is not None:
        settings._commit_hash = getattr(config, "_commit_hash", None)
    with torch.device("meta"):
        swin = SwinModel(settings, add_pooling_layer=False)
    # Buffers that aren't saved, such as the index of the position bias, are made where the weights are.
    swin = swin.to_empty(device=next(model.parameters()).device)
    swin.init_weights()
    swin.load_state_dict(dict(_swin_state(model.state_dict())), strict=True)
    return swin.eval()


_RENAMED = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "embeddings.norm.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.proj.": "attention.o_proj.",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
}


def _swin_state(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """timm's tensors by transformers' names."""
    for name, tensor in state.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        if name.startswith("norm."):
            yield f"layernorm.{name.removeprefix('norm.')}", tensor
            continue
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        if not name.startswith("layers."):
            yield name, tensor
            continue
        stage, rest = name.removeprefix("layers.").split(".", 1)
        if rest.startswith("downsample."):
            # It stands before its stage in timm, and after the one before in transformers.
            stage = str(int(stage) - 1)
        head = f"encoder.layers.{stage}.{rest}"
        if ".attn.qkv." in head:
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                yield head.replace(".attn.qkv.", f".attention.{part}_proj."), value
        else:
            yield head, tensor
