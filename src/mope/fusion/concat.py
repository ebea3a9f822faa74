"""Late fusion: each encoder by itself, their features side by side: LateConcat and P-LateConcat."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mope.config import Config
from mope.encoders import Encoder, TunedEncoder
from mope.fusion.base import Batch, FusionOutput, InRounds, Last, tune


class Concat(InRounds):
    """Global features of all inputs, concatenated in the order of the config (section IV-C).

    Args:
        encoders: tuned encoders by input name.
        main: name of the main input; it matters for the learning rates alone.
    """

    reentrant = True

    def __init__(self, encoders: Mapping[str, TunedEncoder], main: str):
        super().__init__()
        self.main = main
        self.encoders = nn.ModuleDict(dict(encoders))
        self.guides = [name for name in self.encoders if name != main]

    @property
    def feature_dim(self) -> int:
        return sum(self.encoder(name).pooled_dim for name in self.encoders)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Concat":
        return cls(tune(config, encoders), config.fusion.main)

    def forward(self, batch: Batch) -> FusionOutput:
        return self._joined({name: self.feature(name, batch) for name in self.encoders})  # or from disk

    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        return Last(
            [self.encoder(self.main).call(batch[self.main])],
            lambda outputs: self._joined({**psi, self.main: outputs[0].pooled}),
        )

    def _joined(self, found: Mapping[str, Tensor]) -> FusionOutput:
        features = torch.cat([found[name].float() for name in self.encoders], dim=1)
        return FusionOutput(features, features.unsqueeze(1))
