"""PMF: two prompted streams that exchange prompts in their last layers (Li et al. 2023, arXiv 2304.06306)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mope.config import Config
from mope.encoders import Encoder, TransformerEncoder, TunedEncoder
from mope.errors import UserError
from mope.fusion.base import Batch, Fusion, FusionOutput, tune


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
    """

    def __init__(
        self,
        encoders: Mapping[str, TunedEncoder],
        main: str,
        *,
        layers: int = 2,
        length: int = 6,
    ):
        super().__init__()
        self.main, self.layers = main, layers
        self.encoders = nn.ModuleDict(dict(encoders))
        self.query, self.query_context, self.fusion_context, self.maps = (nn.ModuleDict() for _ in range(4))
        names = list(self.encoders)
        dims = {name: self.encoder(name).encoder.layer_dims for name in names}
        for name, other in zip(names, reversed(names), strict=True):
            for kind in (self.query, self.query_context, self.fusion_context):
                kind[name] = nn.ParameterList(
                    torch.empty(length, dim).normal_(std=0.02) for dim in dims[name][-layers:]
                )
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
            tune(config, encoders),
            settings.main,
            layers=settings.exchange_layers,
            length=settings.length,
        )

    def forward(self, batch: Batch) -> FusionOutput:
        """Run both streams in turns: each waits, amid its forward pass, for the other's answer."""
        try:
            from greenlet import getcurrent, greenlet
        except ImportError:
            raise UserError("PMF takes the package greenlet: pip install 'mope[studies]'.") from None
        first, second = self.encoders
        answers: dict[tuple[str, int], Tensor] = {}
        back = getcurrent()
        other = greenlet(lambda: self._run(second, batch, answers, back.switch))
        one = self._run(first, batch, answers, other.switch)
        outputs = {first: one, second: other.switch()}
        features = torch.cat([outputs[name].pooled.float() for name in self.encoders], dim=1)
        return FusionOutput(features, outputs[self.main].tokens)

    def _run(self, name: str, batch: Batch, answers: dict[tuple[str, int], Tensor], wait: Any) -> Any:
        return self.encoders[name](batch[name], prompts=_Stream(self, name, answers, wait))


def _translator(theirs: int, own: int) -> nn.Sequential:
    """What maps one stream's query outputs (B, l, d_theirs) to the other's width."""
    hidden = max(theirs, own) // 2
    return nn.Sequential(nn.Linear(theirs, hidden), nn.ReLU(), nn.Linear(hidden, own))


class _Stream:
    """A `CarryingSource` for one stream, which hands its answers to the other and waits for the other's."""

    blind = 0

    def __init__(self, pmf: Pmf, name: str, answers: dict[tuple[str, int], Tensor], wait: Any):
        self.pmf, self.name, self.answers, self.wait = pmf, name, answers, wait
        self.other = next(other for other in pmf.encoders if other != name)
        self.start = len(pmf.encoder(name).encoder.layer_dims) - pmf.layers

    def queries(self, layer: int) -> Tensor | None:
        """Query prompts and their context, (1, 2 l, d), which the layer spreads over the batch."""
        step = layer - self.start
        if step < 0:
            return None
        pmf = self.pmf
        both = torch.cat([pmf.query[self.name][step], pmf.query_context[self.name][step]])  # type: ignore[index]
        return both.unsqueeze(0)

    def answer(self, layer: int, outputs: Tensor) -> None:
        """Keep the outputs of the query prompts for the other stream."""
        length = outputs.shape[1] // 2
        self.answers[self.name, layer - self.start] = outputs[:, :length]

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        """Fusion context prompts, and what the other stream's queries learned, (B, 2 l, d)."""
        step = layer - self.start
        if step < 0:
            return None
        while (self.other, step) not in self.answers:
            self.wait()
        pmf = self.pmf
        told = pmf.maps[self.name][step](self.answers[self.other, step])  # type: ignore[index]
        context = pmf.fusion_context[self.name][step].expand(len(x0), -1, -1)  # type: ignore[index]
        return torch.cat([context.to(x0.dtype), told.to(x0.dtype)], dim=1)

    def receive(self, layer: int, outputs: Tensor) -> None:
        """What becomes of a layer's prompts isn't used."""
