"""A Hugging Face transformer that asks a prompt source for its prompts."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mope.encoders import windows
from mope.encoders.base import Encoder, EncoderOutput
from mope.encoders.families import ARGUMENT, FAMILIES, Family, Insertion, Pooling, follow
from mope.encoders.layers import ask_for_prompts, global_feature, relayed
from mope.encoders.prefix import ATTENTION, project
from mope.encoders.stack import LayerStack, make_steppable
from mope.errors import UserError
from mope.prompts import Projected, PromptSource

_TAKEN = "_mope_taken"
"""Marks a model whose layers ask for prompts: a second encoder's hooks would ask twice."""


class TransformerEncoder(Encoder):
    """Any supported Hugging Face encoder, with prompts in every layer.

    The model is taken over: its attention implementation is set and hooks are installed. Without a source its
    outputs are the bare model's, bit for bit.

    Args:
        model: the bare model, as `AutoModel` loads it.
        insertion: "prefix" puts prompts in front of keys and values; "tokens" concatenates them to the
            layer's tokens and strips them after it, which is slower and the same function. By default the
            faster one that the family supports.
        pooling: global feature: "cls", "mean" or the model's own "pooler"; by default the family's.

    Raises:
        UserError: the model's family isn't supported, or not with this insertion; or it is another
            encoder's already.
    """

    def __init__(
        self, model: PreTrainedModel, insertion: Insertion | None = None, pooling: Pooling | None = None
    ):
        super().__init__()
        name = model.config.model_type
        if name not in FAMILIES:
            raise UserError(
                f"Models of type '{name}' aren't supported: add a row with its attribute paths to "
                "mope/encoders/families.py, wrap it as a BlackBoxEncoder, which takes no prompts, "
                f"or take one of {', '.join(FAMILIES)}."
            )
        self.family = family = _family(model)
        self.insertion: Insertion = insertion or family.insertion
        if family.insertion == "tokens" and self.insertion == "prefix":
            raise UserError(f"Models of type '{name}' take prompts by insertion 'tokens' only.")
        held_back = family.tokens_unless is not None and getattr(model.config, family.tokens_unless, False)
        if self.insertion == "tokens" and (held_back or not family.tokens):
            raise UserError(f"Models of type '{name}' take prompts by insertion 'prefix' only.")
        self.backbone: Any = model.get_submodule(family.inner) if family.inner else model
        self.pooling: Pooling = pooling or family.pooling or family.x0
        self.is_checkpointing = self.gives_maps = False
        self._listened: list[int] | None = None
        self.kind = family.kind
        self.layer_dims = self._install()
        self.pooled_dim = self.layer_dims[-1]
        self.patch_area = _patch_area(self.backbone)
        self.plain = not hasattr(self.backbone.config, "depths")
        self.map_dims = self._map_dims() if self.kind == "image" else ()
        self.reentrant = not family.restore
        self.commit = getattr(model.config, "_commit_hash", None)

    def _install(self) -> list[int]:
        """Let every layer ask for prompts; the width of each."""
        widths = []
        family = self.family
        if hasattr(self.backbone, _TAKEN):
            raise UserError("This model is another encoder's already: load it anew, or copy it beforehand.")
        setattr(self.backbone, _TAKEN, True)
        if hasattr(self.backbone.config, "apply_spec_augment"):
            # It hides stretches of time, which a short clip hasn't, behind an embedding that learns then.
            self.backbone.config.apply_spec_augment = False
        if family.insertion == "prefix":
            self.backbone.set_attn_implementation(ATTENTION)
        for index, layer in enumerate(self.layers):
            attention = layer.get_submodule(family.attention)
            widths.append(getattr(attention, family.key).in_features)
            if family.restore:
                windows.share_masks(layer, attention)
            ask_for_prompts(layer, index, family, self._norm, self.insertion)
        return widths

    def _map_dims(self) -> tuple[int, ...]:
        if self.plain:
            return (self.pooled_dim,) * 4 if self.patch_area > 1 else ()
        depths = self.backbone.config.depths
        return tuple(self.layer_dims[sum(depths[:stage])] for stage in range(len(depths)))

    def unused_parameters(self) -> Iterator[nn.Parameter]:
        family = self.family
        paths = family.unused
        if self.gives_maps or self.pooling != "pooler":
            paths += family.pooler
        if self.gives_maps:
            paths += family.last
        for name, parameter in self.backbone.named_parameters():
            if any(f"{name}.".startswith(f"{path}.") for path in paths):
                yield parameter

    def give_maps(self) -> None:
        """Let a plain transformer's layers be listened to; a hierarchical one gives its stages anyway."""
        self.gives_maps = True
        if self.plain and self._listened is None:
            self._listened = [max(0, math.ceil((part + 1) * len(self.layers) / 4) - 1) for part in range(4)]
            for index in set(self._listened):
                self.layers[index].register_forward_hook(partial(_hear, index))

    @property
    def layers(self) -> list[Any]:
        """The layers, in order."""
        return list(follow(self.backbone, self.family.layers))

    def units(self) -> Iterator[nn.Module]:
        yield from self.layers
        yield self.backbone

    def freeze(self, dtype: torch.dtype | None = None) -> None:
        """Settle what doesn't learn any more; there is no way back but to load the encoder anew.

        Nothing is kept beside the weights, so that nothing can differ from them: linear layers hold what has
        stopped to learn in `dtype`, and a Swin's position bias takes the place of the table it is read from.
        """
        for part in self.backbone.modules():
            if dtype is not None and type(part) is nn.Linear:
                for name, parameter in list(part.named_parameters(recurse=False)):
                    if not parameter.requires_grad and parameter.dtype != dtype:
                        setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
            if windows.is_windowed(part):
                windows.fix_bias(part)

    @property
    def _norm(self) -> str | None:
        """Path from a layer to what stands before its attention, if anything does."""
        family = self.family
        stands = family.norm_if is None or getattr(self.backbone.config, family.norm_if)
        return family.norm if stands else None

    def project_prompts(self, layer: int, prompts: Tensor) -> Projected | None:
        if self.insertion != "prefix":
            return None
        found = self.layers[layer]
        states = prompts if self._norm is None else found.get_submodule(self._norm)(prompts)
        return project(self.family, found.get_submodule(self.family.attention), states)

    def projecting(self, layer: int) -> Iterator[tuple[Mapping[str, nn.Module | None], str]]:
        family, found = self.family, self.layers[layer]
        for path in (f"{family.attention}.{family.key}", f"{family.attention}.{family.value}", self._norm):
            if path is not None:
                parent, _, name = path.rpartition(".")
                yield found.get_submodule(parent)._modules, name

    def make_steppable(self) -> None:
        """Let `stack` run the layers one at a time."""
        make_steppable(self.layers)

    def stack(self, **inputs: Tensor) -> LayerStack:
        """The layers one at a time over a batch, after `make_steppable`; see `forward` for the inputs."""
        return LayerStack(lambda: self(**inputs), self.layers, self.family, self.is_checkpointing)

    def gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        transformers does so in layers that train; a frozen encoder's layers are told that they do; what is
        in them isn't, so that nothing drops out.
        """
        if self.family.relay and self.insertion == "tokens":
            # The model's own way would run the layer's hooks again in the backward pass, without a source.
            for layer in self.layers:
                plain = partial(type(layer).forward, layer)
                layer.forward = partial(checkpoint, plain, use_reentrant=False)
            return
        self.backbone.activation_checkpointing_enable({"use_reentrant": False})
        self.is_checkpointing = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "TransformerEncoder":
        """Set the training mode, which layers keep for the sake of checkpointing."""
        super().train(mode)
        if self.is_checkpointing:
            for layer in self.layers:
                layer.training = True
        return self

    def forward(
        self, prompts: PromptSource | None = None, stages: bool = False, **inputs: Any
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            prompts: asked once per layer for that layer's prompts; None for the bare model.
            stages: whether to give feature maps, after `give_maps`.
            inputs: the model's own inputs: `pixel_values` (B, 3, H, W), or `input_ids` and
                `attention_mask` (B, N), or `input_values` (B, samples) or `input_features` (B, bins, frames).

        Raises:
            UserError: feature maps are asked for that it doesn't give, its attention was set to another
                kernel, or pictures are smaller than its windows.
        """
        arguments = {**self.family.call, **inputs}
        if (stages and not self.map_dims) or (stages and self.plain and self._listened is None):
            raise UserError("This encoder gives no feature maps, or hasn't been asked to by `give_maps`.")
        if stages and not self.plain:
            arguments |= {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
        if self.family.restore and "pixel_values" in inputs:
            windows.require_windows(self.backbone.config, *inputs["pixel_values"].shape[-2:])
        attention = self.backbone.config._attn_implementation
        if prompts is not None and self.insertion == "prefix" and attention != ATTENTION:
            raise UserError(
                f"The model's attention was set to '{attention}' after the encoder was made, which ignores "
                f"prompts: leave it at '{ATTENTION}'."
            )
        if prompts is not None and not self.family.relay:
            arguments[ARGUMENT] = prompts
        with _listening() as heard:
            if self.family.relay:
                with relayed(prompts):
                    output = self.backbone(**arguments)
            else:
                output = self.backbone(**arguments)
        tokens = output.last_hidden_state
        real = self._real(tokens, inputs.get("attention_mask"))
        if self.pooling == "pooler":
            pooled = output.pooler_output
        else:
            pooled = global_feature(tokens, self.pooling, real)
        maps: tuple[Tensor, ...] = ()
        if stages and self.plain:
            height, width = inputs["pixel_values"].shape[-2:]
            maps = tuple(self._map(heard[index], height, width) for index in self._listened or ())
        elif stages:
            maps = tuple(output.reshaped_hidden_states[1:])  # the first map is the stem's
        return EncoderOutput(pooled, tokens, maps, real)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels; (1, 1) without patches."""
        return _patch_size(self.backbone)

    def _map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, N, D) of a picture as a map (B, D, rows, columns); other tokens stand before its own."""
        rows, columns = (n // size for n, size in zip((height, width), self.patch_size, strict=True))
        return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))

    def _real(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which tokens are real, (B, N), from the mask of the inputs."""
        if mask is None or self.family.frames is None:
            return mask
        return getattr(self.backbone, self.family.frames)(tokens.shape[1], mask)


def _family(model: PreTrainedModel) -> Family:
    """A model's row, as its settings say."""
    family = FAMILIES[model.config.model_type]
    if model.config.model_type == "timm_wrapper" and not getattr(model.timm_model, "has_class_token", False):
        return replace(family, x0="mean")
    return family


_heard: ContextVar[dict[int, Tensor] | None] = ContextVar("mope_heard", default=None)


@contextmanager
def _listening() -> Iterator[dict[int, Tensor]]:
    """Take the outputs of the layers that are listened to, in this pass alone."""
    found: dict[int, Tensor] = {}
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def _hear(index: int, layer: Any, args: tuple, output: Any) -> None:
    if (found := _heard.get()) is not None:
        found[index] = output[0] if isinstance(output, tuple) else output


def _patch_area(model: Any) -> int:
    height, width = _patch_size(model)
    return height * width


def _patch_size(model: Any) -> tuple[int, int]:
    size = getattr(model.config, "patch_size", None)
    if size is None and hasattr(model, "timm_model"):
        size = model.timm_model.patch_embed.patch_size
    height, width = size if isinstance(size, tuple | list) else (size or 1, size or 1)
    return height, width
