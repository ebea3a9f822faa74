"""What the library knows of each model family: attribute paths, as data.

A family is a row here and nothing else; the mechanism is in `layers.py`, `prefix.py` and `among.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

ARGUMENT = "mope"
"""The keyword argument that travels through a model: a `PromptSource` to its layers, and from a layer to its
attention what that has to be told."""

Kind = Literal["image", "text", "audio", "video", "table"]
Pooling = Literal["cls", "mean", "pooler"]
Insertion = Literal["prefix", "tokens"]


@dataclass(frozen=True)
class Family:
    """Where a Hugging Face model keeps what prompting needs.

    Attributes:
        kind: the modality kind it encodes.
        layers: path from the model to its layers, in order; `*` stands for every member of a list.
        attention: path from a layer to the module that calls the attention interface.
        key, value: names of the key and value projections in that module; where both name the same one, it
            gives queries, keys and values at once.
        norm: path from a layer to the norm that stands before its attention; None where there is none.
        norm_if: setting of the model that must be true for `norm` to stand there; None for always.
        x0: the global feature entering a layer: the first token ("cls"), or the mean over real ones ("mean").
        pooling: the global feature of the whole encoder: as `x0`, or the model's own pooler ("pooler").
        insertion: how prompts are put in; "tokens" where attention can't be reached.
        tokens: whether `insertion="tokens"` works.
        tokens_unless: setting of the model with which it doesn't.
        inner: path from the loaded model to its encoder, where it has other parts.
        relay: whether the model keeps keyword arguments from its layers, so that the source takes a side way.
        mask: what the layers call the mask of their attention.
        adds_mask: whether they add it to the logits, whatever it is.
        frames: method of the model that gives the mask of its frames, (length, sample mask) -> (B, length).
        mlp: path from a layer to the module that is its MLP; None where there is no such module.
        mlp_adds: whether that module is called with the MLP's hidden states and with what the MLP saw.
        restore: attributes of a layer that a forward pass may change, and that are set back before each.
        unused: paths of parameters that its forward pass never reads, such as a mask token of pre-training.
        pooler: paths to what only the model's own pooled output passes.
        last: paths to what stands behind its layers, which feature maps don't pass.
        options: arguments for building the model, to leave out parts that are never used.
        call: arguments of every forward pass.
    """

    kind: Kind
    layers: str
    attention: str
    key: str
    value: str
    norm: str | None
    x0: Literal["cls", "mean"]
    norm_if: str | None = None
    pooling: Pooling | None = None
    insertion: Insertion = "prefix"
    tokens: bool = True
    tokens_unless: str | None = None
    inner: str | None = None
    relay: bool = False
    mask: str = "attention_mask"
    adds_mask: bool = False
    frames: str | None = None
    mlp: str | None = "mlp"
    mlp_adds: bool = False
    restore: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    pooler: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """Name of the query projection: as the key's."""
        return self.key.replace("k_", "q_").replace("key", "query")


_DINO = ("attention", "k_proj", "v_proj", "norm1", "cls")
_MASK_TOKEN = ("embeddings.mask_token",)
_NO_POOLER = {"add_pooling_layer": False}
_ANY_SIZE = {"interpolate_pos_encoding": True}

_VIT = Family(
    "image",
    "layers",
    "attention",
    "k_proj",
    "v_proj",
    "layernorm_before",
    "cls",
    last=("layernorm",),
    options=_NO_POOLER,
    call=_ANY_SIZE,
)
_BERT = Family(
    "text",
    "encoder.layer",
    "attention.self",
    "key",
    "value",
    None,
    "cls",
    mlp="output",
    mlp_adds=True,
    options=_NO_POOLER,
)
_CLIP = Family(
    "image",
    "encoder.layers",
    "self_attn",
    "k_proj",
    "v_proj",
    "layer_norm1",
    "cls",
    pooling="pooler",
    pooler=("post_layernorm",),
)
_WAV2VEC2 = Family(
    "audio",
    "encoder.layers",
    "attention",
    "k_proj",
    "v_proj",
    "layer_norm",
    "mean",
    norm_if="do_stable_layer_norm",
    frames="_get_feature_vector_attention_mask",
    mlp="feed_forward",
    unused=("masked_spec_embed",),
)

FAMILIES: dict[str, Family] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": Family("image", "encoder.layer", *_DINO, unused=_MASK_TOKEN, last=("layernorm",)),
    "dinov3_vit": Family("image", "model.layer", *_DINO, unused=_MASK_TOKEN, last=("norm",)),
    # Its position bias has the size of the tokens that reach the layer.
    "beit": replace(
        _VIT,
        pooling="pooler",
        tokens_unless="use_relative_position_bias",
        unused=_MASK_TOKEN,
        pooler=("pooler",),
        options={},
        call=_ANY_SIZE,
    ),
    "clip_vision_model": replace(_CLIP, call=_ANY_SIZE),
    # Its attention keeps keyword arguments to itself.
    "siglip_vision_model": replace(
        _CLIP, x0="mean", insertion="tokens", pooler=("head",), last=("post_layernorm",), call=_ANY_SIZE
    ),
    # A window's tokens reach the layer as an image, so there is no place among them for a prompt.
    "swin": Family(
        "image",
        "encoder.layers.*.blocks",
        "attention",
        "k_proj",
        "v_proj",
        "layernorm_before",
        "mean",
        tokens=False,
        restore=("window_size", "shift_size"),
        last=("layernorm",),
        options=_NO_POOLER,
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "electra": replace(_BERT, options={}),
    "distilbert": Family("text", "transformer.layer", "attention", "k_lin", "v_lin", None, "cls", mlp="ffn"),
    "modernbert": Family("text", "layers", "attn", "Wqkv", "Wqkv", "attn_norm", "cls"),
    "clip_text_model": replace(_CLIP, kind="text", x0="mean", pooler=()),
    "wav2vec2": _WAV2VEC2,
    "hubert": replace(_WAV2VEC2, relay=True),
    "whisper": Family(
        "audio",
        "layers",
        "self_attn",
        "k_proj",
        "v_proj",
        "self_attn_layer_norm",
        "mean",
        inner="encoder",
        mlp=None,
    ),
    "audio-spectrogram-transformer": Family(
        "audio", "layers", "attention", "k_proj", "v_proj", "layernorm_before", "cls", pooling="pooler"
    ),
    # timm's own ViTs, which don't call the attention interface; see `timm.py` for its other models.
    "timm_wrapper": Family(
        "image",
        "timm_model.blocks",
        "attn",
        "qkv",
        "qkv",
        "norm1",
        "cls",
        pooling="pooler",
        insertion="tokens",
        relay=True,
        mask="attn_mask",
        adds_mask=True,
        last=("timm_model.norm", "timm_model.fc_norm"),
    ),
}
"""By `config.model_type` of transformers."""

PARTS: dict[tuple[str, Kind], str] = {
    ("clip", "image"): "clip_vision_model",
    ("clip", "text"): "clip_text_model",
    ("siglip", "image"): "siglip_vision_model",
}
"""The family of one modality's part of a model that has several, by its `model_type`."""


def follow(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules that a path names, in order: `encoder.layers.*.blocks` -> every block of every stage."""
    head, star, rest = path.partition(".*.")
    found = module.get_submodule(head)
    if star:
        for member in found.children():
            yield from follow(member, rest)
    elif isinstance(found, nn.ModuleList | nn.Sequential):
        yield from found
    else:
        yield found
