"""A run's settings."""

from mope.config.fusion import (
    ConcatConfig,
    FusionConfig,
    InputsConfig,
    PmfConfig,
    RegisteredConfig,
    SequentialConfig,
    UnimodalConfig,
    of_older_version,
    only_own,
)
from mope.config.sections import (
    MAX_PIXELS,
    DataConfig,
    EncoderConfig,
    FieldConfig,
    InputConfig,
    MediaLimits,
    Section,
    SegmentationConfig,
    TrainingConfig,
)
from mope.config.settings import Config, Setting, explain, fields, typed

__all__ = [
    "MAX_PIXELS",
    "ConcatConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FieldConfig",
    "FusionConfig",
    "InputConfig",
    "InputsConfig",
    "MediaLimits",
    "PmfConfig",
    "RegisteredConfig",
    "Section",
    "SegmentationConfig",
    "SequentialConfig",
    "Setting",
    "TrainingConfig",
    "UnimodalConfig",
    "explain",
    "fields",
    "of_older_version",
    "only_own",
    "typed",
]
