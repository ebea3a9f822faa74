"""A run's settings."""

from mope.config.sections import (
    DataConfig,
    EncoderConfig,
    FusionConfig,
    InputConfig,
    Section,
    SegmentationConfig,
    TrainingConfig,
)
from mope.config.settings import Config, explain, fields

__all__ = [
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FusionConfig",
    "InputConfig",
    "Section",
    "SegmentationConfig",
    "TrainingConfig",
    "explain",
    "fields",
]
