"""What fusion knows of an encoder: a global feature, and the widths at which it asks for prompts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mope.encoders.families import Kind
from mope.prompts import Projected, PromptSource


@dataclass
class EncoderOutput:
    """What an encoder makes of a batch.

    Attributes:
        pooled: global feature (B, D).
        tokens: all tokens of the last layer, normed as the model does, without prompts (B, N, D); of a black
            box its feature as the one token there is.
        stages: four feature maps (B, C_s, H_s, W_s), if asked for: of a hierarchical encoder's stages, or of
            four layers of a plain transformer, evenly spaced.
        real: which tokens aren't padding, (B, N), boolean or 0 and 1; None where all are.
    """

    pooled: Tensor
    tokens: Tensor
    stages: tuple[Tensor, ...] = ()
    real: Tensor | None = None


class Encoder(nn.Module, ABC):
    """An encoder of one modality.

    Attributes:
        kind: what it encodes.
        layer_dims: width of each layer that asks for prompts; empty where none does.
        pooled_dim: width D of the global feature.
        patch_area: pixels of a patch; 1 without patches.
        map_dims: widths C_s of the feature maps that it can give; empty for none.
        plain: whether these are all of one size, that of a plain transformer's patches.
        known_as: its `fingerprint` before it was frozen, where that is known.
        reentrant: whether several threads may run it at once: its passes leave nothing in its modules.
        commit: hub commit of its weights, if they came from the hub.
    """

    kind: Kind
    layer_dims: list[int]
    pooled_dim: int
    patch_area: int = 1
    map_dims: tuple[int, ...] = ()
    plain: bool = False
    reentrant: bool = False
    known_as: str | None = None
    commit: str | None = None

    def freeze(self, dtype: torch.dtype | None = None) -> None:
        """Settle what doesn't require gradients, once and for all, for passes under autocast to `dtype`.

        Results are the same, and faster. None leaves the arithmetic as it is.
        """

    def project_prompts(self, layer: int, prompts: Tensor) -> Projected | None:
        """Keys and values that a layer makes of prompts (B or 1, P, d_i), by its index from 0.

        None where prompts stand among its tokens: there each depends on its row.
        """
        return None

    def projecting(self, layer: int) -> Iterator[tuple[Mapping[str, nn.Module | None], str]]:
        """The modules that `project_prompts` applies: what holds each, and its name there."""
        yield from ()

    def gradient_checkpointing(self) -> None:
        """Compute the layers' activations again in the backward pass instead of keeping them; without layers,
        nothing."""

    def units(self) -> Iterator[nn.Module]:
        """The modules whose weights can be shared out among processes one by one, inner ones first: each is
        read by calls of the module alone, and all that is trained is in one of them."""
        yield self

    def unused_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that nothing which is read of the encoder depends on: they must not be trained.

        After `give_maps` the maps alone are read.
        """
        yield from ()

    def give_maps(self) -> None:
        """Get ready to be asked for feature maps; only for an encoder with `map_dims`."""

    @abstractmethod
    def forward(self, prompts: PromptSource | None = None, **inputs: Any) -> EncoderOutput:
        """Encode a batch.

        Args:
            prompts: asked once per layer for that layer's prompts; None for the bare encoder.
            inputs: the keyword arguments that its kind's reader makes.
        """

    def feature(self, **inputs: Any) -> Tensor:
        """What `project` makes the global feature of; it depends on nothing that is trained if the encoder
        is frozen, so it may be kept."""
        return self(**inputs).pooled

    def project(self, feature: Tensor) -> Tensor:
        """The global feature (B, D) from what `feature` gave."""
        return feature
