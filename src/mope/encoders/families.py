"""What the library knows of each model family: attribute paths, as data.

A family is a row here and nothing else; the mechanism is in `prefix.py` and `transformer.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Pooling = Literal["cls", "mean"]


@dataclass(frozen=True)
class Family:
    """Where a Hugging Face model keeps what prompting needs.

    Attributes:
        kind: the modality kind it encodes.
        layers: path from the model to its layers, in order; `*` stands for every member of a list.
        attention: path from a layer to the module that calls the attention interface.
        key, value: names of the key and value projections in that module.
        norm: path from a layer to the norm that stands before its attention; None where there is none.
        pooling: the global feature: the first token ("cls"), or the mean over real tokens ("mean").
        tokens: whether prompts may also be put among the layer's tokens (`insertion="tokens"`).
        options: arguments for building the model, to leave out parts that are never used.
        call: arguments of every forward pass.
    """

    kind: Literal["image", "text", "audio"]
    layers: str
    attention: str
    key: str
    value: str
    norm: str | None
    pooling: Pooling
    tokens: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


_NO_POOLER = {"add_pooling_layer": False}
_BERT = Family("text", "encoder.layer", "attention.self", "key", "value", None, "cls", options=_NO_POOLER)

FAMILIES: dict[str, Family] = {
    "vit": Family(
        "image",
        "layers",
        "attention",
        "k_proj",
        "v_proj",
        "layernorm_before",
        "cls",
        options=_NO_POOLER,
        call={"interpolate_pos_encoding": True},
    ),
    "dinov2": Family("image", "encoder.layer", "attention", "k_proj", "v_proj", "norm1", "cls"),
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
        options=_NO_POOLER,
    ),
    "bert": _BERT,
    "roberta": _BERT,
}
"""By `config.model_type` of transformers."""


def follow(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules that a path names, in order: `encoder.layers.*.blocks` -> every block of every stage."""
    head, star, rest = path.partition(".*.")
    found = module.get_submodule(head)
    if star:
        for member in found.children():
            yield from follow(member, rest)
    elif isinstance(found, nn.ModuleList):
        yield from found
    else:
        yield found
