"""Fusion at the input: what other encoders say becomes tokens of the main one (PromptFuse, MMBT, Frozen)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mope.config import Config, InputsConfig
from mope.encoders import Encoder, TunedEncoder
from mope.fusion.base import Batch, Fusion, FusionOutput, require_guided, tune
from mope.prompts import Offsets, PromptSource, Start, make_offsets, prompt_bound


class Inputs(Fusion):
    """Tokens of the other inputs stand among the main encoder's, from the first layer to the last.

    With a global feature each it is PromptFuse (Liang et al. 2022, arXiv 2203.08055): everything is frozen
    but a prompt beside these tokens. In BlindPrompt (ibid.) the prompt's tokens attend to one another only,
    while all else attends to everything. PromptFuse-deep gives every layer a fresh prompt. With all of an
    image's tokens and every encoder trained it is MMBT (Kiela et al. 2019, arXiv 1909.02950); with a feature
    mapped to two tokens, the image encoder trained and the text encoder frozen, Frozen (Tsimpoukelli et al.
    2021, arXiv 2106.13884).

    Readings of what the originals leave open:
    - Tokens are put in behind the embedding layer, so they get no position or segment of the main input's:
      an image's tokens carry their places already.
    - A feature of another width than the main encoder's is mapped by a trained linear layer; one of the same
      width goes in as it is, as in PromptFuse, unless it becomes several tokens.
    - An encoder whose layers take no tokens among their own (Swin) has no place where they could live on:
      there they are keys and values of the first layer alone, and BlindPrompt has nothing to hide: it is
      PromptFuse.
    - A blind prompt doesn't see the other inputs' features either: they are input data, too.

    Args:
        encoders: tuned encoders by input name.
        main: name of the main input.
        length: prompt length l; 0 for none.
        deep: whether every layer has a prompt of its own.
        blind: whether the prompt's tokens attend to one another only.
        source: "feature" or "tokens" of the other encoders.
        tokens: how many tokens a feature is mapped to.
        dropout: dropout probability on the prompts.
        start: how loud the prompts begin; the others' tokens are as loud as they are.
    """

    has_maps = True
    reentrant = True

    def __init__(
        self,
        encoders: Mapping[str, TunedEncoder],
        main: str,
        *,
        length: int = 6,
        deep: bool = False,
        blind: bool = False,
        source: str = "feature",
        tokens: int = 1,
        dropout: float = 0.1,
        start: Start = "published",
    ):
        super().__init__()
        self.main = main
        self.encoders = nn.ModuleDict(dict(encoders))
        inner = self.encoder(main).encoder
        dims = inner.layer_dims if deep else inner.layer_dims[:1]
        bound = prompt_bound(dims[0], inner.patch_area)
        self.prompts = nn.ParameterList(
            torch.empty(length, dim).uniform_(-bound, bound) for dim in (dims if length else [])
        )
        self.deep, self.blind, self.source, self.tokens = deep, blind, source, tokens
        self.project = nn.ModuleDict()
        for name in self.encoders:
            width = self.encoder(name).pooled_dim
            if name != main and (source == "tokens" or tokens > 1 or width != dims[0]):
                self.project[name] = nn.Linear(width, tokens * dims[0])
        self.dropout = nn.Dropout(dropout)
        # A prompt that lives on is attended to in every layer, a token of the others in as many.
        self.offsets = make_offsets(start, len(inner.layer_dims), [length])

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Inputs":
        settings = config.fusion
        assert isinstance(settings, InputsConfig)
        main = settings.main
        require_guided(config, encoders)
        return cls(
            tune(config, encoders, without_stand_in=[main]),
            main,
            length=settings.length,
            deep=settings.deep,
            blind=settings.blind,
            source=settings.input_from,
            tokens=settings.input_tokens,
            dropout=settings.dropout,
            start=settings.start,
        )

    def forward(self, batch: Batch) -> FusionOutput:
        found = [self._tokens(name, batch) for name in self.encoders if name != self.main]
        source = InputSource(
            list(self.prompts),
            torch.cat([tokens for tokens, _ in found], dim=1),
            self.deep,
            self.blind,
            self.dropout,
            self.offsets,
            _hidden(found),
        )
        output = self.encoders[self.main](batch[self.main], prompts=source, maps=self.gives_maps)
        return FusionOutput(output.pooled, output.tokens, maps=output.stages)

    def _tokens(self, name: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, n, d) of one of the other inputs, and which aren't padding, (B, n); None for all."""
        if self.source == "tokens":
            output = self.encoders[name](batch[name])
            return self.project[name](output.tokens), output.real
        feature = self.feature(name, batch)
        if name in self.project:
            feature = self.project[name](feature)
        return feature.unflatten(1, (self.tokens, -1)), None


def _hidden(found: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """What is added to the logits of all inputs' tokens, (B, n): minus infinity for padding, which depends on
    what else is in a batch; None for nothing."""
    if all(real is None for _, real in found):
        return None
    parts = []
    for tokens, real in found:
        none = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32)
        parts.append(none if real is None else none.masked_fill(real == 0, float("-inf")))
    return torch.cat(parts, dim=1)


class InputSource(PromptSource):
    """Tokens that live on from layer to layer, and prompts that do, or are fresh in each.

    Args:
        prompts: of each layer, or one that lives on, (l, d) each; empty for none.
        inputs: tokens of the other inputs (B, n, d).
        deep: whether there is a fresh prompt in each layer.
        blind: whether the prompt's tokens attend to one another only.
        dropout: on the prompts.
        offsets: of the prompts, which stand first; None without.
        hidden: added to the logits of the inputs' tokens, (B, n); None for nothing.
    """

    lives_on = True

    def __init__(
        self,
        prompts: Sequence[Tensor],
        inputs: Tensor,
        deep: bool,
        blind: bool,
        dropout: nn.Module,
        offsets: Offsets | None = None,
        hidden: Tensor | None = None,
    ):
        self.prompts, self.deep, self.dropout, self.offsets = prompts, deep, dropout, offsets
        self.hidden, self._has_inputs = hidden, False
        self.blind = len(prompts[0]) if blind and prompts else 0
        self.living: Tensor | None = inputs
        self._fresh = self._given = 0

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """What stands among the tokens of one layer, (B, P, d)."""
        parts, self._fresh = [], 0
        if self.prompts and (self.deep or layer == 0):
            prompt = self.prompts[layer if self.deep else 0].expand(x0.shape[0], -1, -1)
            self._fresh = prompt.shape[1] if self.deep else 0
            parts.append(self.dropout(prompt).to(x0.dtype))
        if self.living is not None:
            parts.append(self.living.to(x0.dtype))
        self._has_inputs = self.living is not None
        self.living = None  # until an encoder that can hands them back
        tokens = torch.cat(parts, dim=1) if parts else None
        self._given = 0 if tokens is None else tokens.shape[1]
        return tokens

    def bias(self, layer: int) -> Tensor | None:
        hidden = self.hidden if self._has_inputs else None
        if hidden is not None:  # the inputs' tokens stand last
            hidden = functional.pad(hidden, (self._given - hidden.shape[1], 0))
        if self.offsets is None:
            return hidden
        offsets = self.offsets(layer)
        offsets = functional.pad(offsets, (0, self._given - offsets.shape[1]))
        return offsets if hidden is None else offsets + hidden

    def receive(self, layer: int, outputs: Tensor) -> None:
        """What the layer made of the tokens is what stands in the next; fresh prompts are dropped."""
        self.living = outputs[:, self._fresh :]
