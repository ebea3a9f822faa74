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
    DataConfig,
    EncoderConfig,
    FieldConfig,
    InputConfig,
    Section,
    SegmentationConfig,
    TrainingConfig,
)
from mope.config.settings import Config, Setting, explain, fields, typed

__all__ = [
    "ConcatConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FieldConfig",
    "FusionConfig",
    "InputConfig",
    "InputsConfig",
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
