"""The encoder of an input, as its section of a config says."""

from mope.config import InputConfig
from mope.encoders.base import Encoder
from mope.encoders.tables import table_encoder
from mope.encoders.weights import empty_encoder, load_encoder


def load_input_encoder(entry: InputConfig) -> Encoder:
    """The encoder, with its weights.

    Raises:
        UserError: it can't be loaded.
    """
    settings = entry.encoder
    if entry.kind == "table":
        return table_encoder(entry.columns, settings.architecture)
    return load_encoder(
        settings.weights,
        revision=settings.revision,
        architecture=settings.architecture,
        pooling=settings.pooling,
        kind=entry.kind,
        projection=settings.projection,
    )


def empty_input_encoder(entry: InputConfig) -> Encoder:
    """The encoder without memory for its weights, on the meta device: none are read or downloaded."""
    settings = entry.encoder
    if entry.kind == "table":
        return table_encoder(entry.columns, settings.architecture).to("meta")
    return empty_encoder(
        settings.weights,
        revision=settings.revision,
        architecture=settings.architecture,
        kind=entry.kind,
        projection=settings.projection,
    )
