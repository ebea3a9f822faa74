"""PMF: two prompted streams that exchange prompts in their last layers (Li et al. 2023, arXiv 2304.06306)."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mope.config import Config, PmfConfig
from mope.encoders import Encoder, TransformerEncoder, TunedEncoder
from mope.encoders.stack import LayerStack
from mope.errors import UserError
from mope.fusion.base import Batch, Fusion, FusionOutput, tune
from mope.prompts import Offsets, Start, make_offsets


class Pmf(Fusion):
    """Query prompts ask each stream, and what they learn is told to the other, in each of the last layers.

    In such a layer a stream first runs its tokens with query prompts and query context prompts, of which only
    the outputs of the query prompts are kept ("querying"). They are mapped to the other stream's width and
    stand, with fusion context prompts, among its tokens when these run ("fusion"). Features of both streams
    are concatenated. Both encoders are frozen.

    As in the authors' code, the mapping is a perceptron with one hidden layer, half as wide as the wider
    stream, of its own for each layer and direction; prompts start from N(0, 0.02) and have no dropout; their
    own outputs are dropped after the fusion. Readings: each of the three kinds of prompts has length l, as
    in the other methods (section IV-C of the paper); streams of different depth are aligned at their ends;
    one linear head over both features stands for the mean of two heads, which is the same function.

    Args:
        encoders: two tuned encoders by input name.
        main: name of the main input.
        layers: number F of last layers in which they exchange prompts.
        length: length of each kind of prompt.
        start: how loud all of them begin, what the other stream tells included.
    """

    def __init__(
        self,
        encoders: Mapping[str, TunedEncoder],
        main: str,
        *,
        layers: int = 2,
        length: int = 6,
        start: Start = "published",
    ):
        super().__init__()
        self.main, self.layers = main, layers
        self.encoders = nn.ModuleDict(dict(encoders))
        self.query, self.query_context, self.fusion_context, self.maps = (nn.ModuleDict() for _ in range(4))
        for name in self.encoders:
            self.encoder(name).make_steppable()
        self.offsets = nn.ModuleDict()
        names = list(self.encoders)
        dims = {name: self.encoder(name).encoder.layer_dims for name in names}
        for name, other in zip(names, reversed(names), strict=True):
            for kind in (self.query, self.query_context, self.fusion_context):
                kind[name] = nn.ParameterList(
                    torch.empty(length, dim).normal_(std=0.02) for dim in dims[name][-layers:]
                )
            for asking in (True, False):
                if (offsets := make_offsets(start, layers, [length, length])) is not None:
                    self.offsets[_of(name, asking)] = offsets
            self.maps[name] = nn.ModuleList(
                _translator(theirs, own)
                for theirs, own in zip(dims[other][-layers:], dims[name][-layers:], strict=True)
            )

    @property
    def feature_dim(self) -> int:
        return sum(self.encoder(name).pooled_dim for name in self.encoders)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Pmf":
        settings = config.fusion
        assert isinstance(settings, PmfConfig)
        if len(encoders) != 2:
            raise UserError(f"PMF fuses two inputs, not {len(encoders)}: name two in `inputs`.")
        for name, encoder in encoders.items():
            if not isinstance(encoder, TransformerEncoder) or not encoder.family.tokens:
                raise UserError(
                    "PMF needs plain transformers, whose layers take other tokens among their own; "
                    f"the encoder of '{name}' isn't one."
                )
            if settings.exchange_layers > len(encoder.layer_dims):
                raise UserError(
                    f"fusion.exchange_layers is {settings.exchange_layers}; "
                    f"the encoder of '{name}' has {len(encoder.layer_dims)} layers."
                )
            if config.inputs[name].encoder.tuning == "prompt":
                raise UserError(f"PMF prompts '{name}' itself: set inputs.{name}.encoder.tuning to frozen.")
        return cls(
            tune(config, encoders, without_stand_in=list(encoders)),
            settings.main,
            layers=settings.exchange_layers,
            length=settings.length,
            start=settings.start,
        )

    def forward(self, batch: Batch) -> FusionOutput:
        stacks = {name: self.encoder(name).stack(batch[name]) for name in self.encoders}
        for stack in stacks.values():
            for _ in range(stack.depth - self.layers):
                stack.advance()
        for step in range(self.layers):
            asked = {name: self._ask(name, step, stack) for name, stack in stacks.items()}
            for (name, stack), learned in zip(stacks.items(), reversed(asked.values()), strict=True):
                told = self.maps[name][step](learned)  # type: ignore[index]
                context = self.fusion_context[name][step].expand(told.shape[0], -1, -1)  # type: ignore[index]
                tokens = torch.cat([context.to(told.dtype), told], dim=1)
                stack.advance(tokens, self._bias(name, step, asking=False))
        outputs = {name: stack.finish() for name, stack in stacks.items()}
        features = torch.cat([output.pooled.float() for output in outputs.values()], dim=1)
        return FusionOutput(features, outputs[self.main].tokens)

    def _ask(self, name: str, step: int, stack: LayerStack) -> Tensor:
        """What a stream's query prompts learn in its next layer, (B, l, d), beside their context."""
        query, context = self.query[name][step], self.query_context[name][step]  # type: ignore[index]
        bias = self._bias(name, step, asking=True)
        return stack.ask(torch.cat([query, context]).unsqueeze(0), bias)[:, : len(query)]

    def _bias(self, name: str, step: int, *, asking: bool) -> Tensor | None:
        """What is added to the attention logits of a stream's prompts in one of the last layers, (1, P)."""
        key = _of(name, asking)
        return cast(Offsets, self.offsets[key])(step) if key in self.offsets else None


def _of(name: str, asking: bool) -> str:
    """The key of a stream's offsets, when it asks and when it is told."""
    return f"{name}_{'asks' if asking else 'is_told'}"


def _translator(theirs: int, own: int) -> nn.Sequential:
    """What maps one stream's query outputs (B, l, d_theirs) to the other's width."""
    hidden = max(theirs, own) // 2
    return nn.Sequential(nn.Linear(theirs, hidden), nn.ReLU(), nn.Linear(hidden, own))
