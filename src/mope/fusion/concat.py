"""Late fusion: each encoder by itself, their features side by side: LateConcat and P-LateConcat."""

from collections.abc import Mapping

import torch
from torch import nn

from mope.config import Config
from mope.encoders import Encoder, TunedEncoder
from mope.fusion.base import Batch, Fusion, FusionOutput, tune


class Concat(Fusion):
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

    @property
    def feature_dim(self) -> int:
        return sum(self.encoder(name).pooled_dim for name in self.encoders)

    @classmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Concat":
        return cls(tune(config, encoders), config.fusion.main)

    def forward(self, batch: Batch) -> FusionOutput:
        features = torch.cat([self.feature(name, batch).float() for name in self.encoders], dim=1)
        return FusionOutput(features, features.unsqueeze(1))
