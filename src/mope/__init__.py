"""Fuse separately pre-trained encoders into one multimodal model by training about 1 % of its parameters."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mope.bulk import evaluate
    from mope.config import (
        ConcatConfig,
        Config,
        DataConfig,
        EncoderConfig,
        FieldConfig,
        InputConfig,
        InputsConfig,
        MutualConfig,
        PmfConfig,
        RegisteredConfig,
        SegmentationConfig,
        SequentialConfig,
        TrainingConfig,
        UnimodalConfig,
    )
    from mope.encoders import BlackBoxEncoder, TransformerEncoder, VideoEncoder, load_encoder
    from mope.errors import UserError
    from mope.methods import register_method
    from mope.model import FusionModel
    from mope.planning import Plan, fit, plan
    from mope.predictions import Prediction, Predictions
    from mope.predictor import Predictor
    from mope.predictors import Predictors
    from mope.training import train

# Where each public name lives. They are imported when first asked for, so that `import mope` costs nothing.
_HOMES = {
    "BlackBoxEncoder": "encoders",
    "ConcatConfig": "config",
    "Config": "config",
    "DataConfig": "config",
    "EncoderConfig": "config",
    "FieldConfig": "config",
    "FusionModel": "model",
    "InputConfig": "config",
    "InputsConfig": "config",
    "MutualConfig": "config",
    "PmfConfig": "config",
    "Plan": "planning",
    "Prediction": "predictions",
    "Predictions": "predictions",
    "Predictor": "predictor",
    "Predictors": "predictors",
    "RegisteredConfig": "config",
    "SegmentationConfig": "config",
    "SequentialConfig": "config",
    "TrainingConfig": "config",
    "TransformerEncoder": "encoders",
    "UnimodalConfig": "config",
    "UserError": "errors",
    "VideoEncoder": "encoders",
    "evaluate": "bulk",
    "fit": "planning",
    "load_encoder": "encoders",
    "plan": "planning",
    "register_method": "methods",
    "train": "training",
}

__all__ = [
    "BlackBoxEncoder",
    "ConcatConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FieldConfig",
    "FusionModel",
    "InputConfig",
    "InputsConfig",
    "MutualConfig",
    "Plan",
    "PmfConfig",
    "Prediction",
    "Predictions",
    "Predictor",
    "Predictors",
    "RegisteredConfig",
    "SegmentationConfig",
    "SequentialConfig",
    "TrainingConfig",
    "TransformerEncoder",
    "UnimodalConfig",
    "UserError",
    "VideoEncoder",
    "evaluate",
    "fit",
    "load_encoder",
    "plan",
    "register_method",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("mope.versions").installed()
    if name not in _HOMES:
        raise AttributeError(f"module 'mope' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mope.{_HOMES[name]}"), name)
