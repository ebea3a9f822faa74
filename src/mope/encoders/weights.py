"""Where an encoder's weights come from: a hub id with a revision, a folder, or an installed package."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from mope.encoders import cnn14  # noqa: F401  (registers itself with transformers)
from mope.encoders.base import Encoder
from mope.encoders.blackbox import BlackBoxEncoder
from mope.encoders.families import FAMILIES, PARTS, Kind, Pooling
from mope.encoders.preparation import first_line
from mope.encoders.sources import resolve
from mope.encoders.timm import timm_encoder, vit_arguments
from mope.encoders.transformer import TransformerEncoder
from mope.encoders.video import VideoEncoder
from mope.errors import UserError


def read_architecture(architecture: Mapping[str, Any]) -> PreTrainedConfig:
    """A model's configuration from `model_type` and what differs from that type's default."""
    settings = dict(architecture)
    name = settings.pop("model_type", None)
    if name is None:
        raise UserError("An encoder's architecture needs a model_type, such as 'bert'.")
    try:
        return AutoConfig.for_model(name, **settings)
    except ValueError:
        raise UserError(f"transformers knows no model_type '{name}'.") from None


def published_architecture(
    weights: str, revision: str | None = None, kind: Kind | None = None
) -> PreTrainedConfig:
    """The configuration that weights come with, or that of one kind's part where they have several.

    Raises:
        UserError: it can't be found or read.
    """
    try:
        config = AutoConfig.from_pretrained(resolve(weights), revision=revision)
        if all(name != config.model_type for name, _ in PARTS):
            return config
        if kind is None or (config.model_type, kind) not in PARTS:
            raise UserError(f"The weights '{weights}' are of several models: say which kind, image or text.")
        part = CONFIG_MAPPING[PARTS[config.model_type, kind]]
        return part.from_pretrained(resolve(weights), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise UserError(f"Can't load the weights '{weights}': {first_line(error)}") from None


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights."""
    return AutoModel.from_config(vit_arguments(config), **_options(config))


def load_backbone(weights: str, revision: str | None = None, kind: Kind | None = None) -> PreTrainedModel:
    """Load a pre-trained model, or one kind's part of it, in float32, with every weight it needs.

    Raises:
        UserError: it can't be found or read, or the file lacks weights.
    """
    config = published_architecture(weights, revision, kind)
    options = _options(config)
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(
                resolve(weights),
                config=vit_arguments(config),
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"Can't load the weights '{weights}': {first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"The weights '{weights}' lack {len(missing)} tensors, such as {missing[0]}.")
    return model


def _options(config: PreTrainedConfig) -> dict[str, Any]:
    return FAMILIES[config.model_type].options if config.model_type in FAMILIES else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its note on weights left unused, such as a pooler's."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def load_encoder(
    weights: str | None,
    *,
    revision: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    pooling: Pooling | None = None,
    kind: Kind | None = None,
    projection: int | None = None,
) -> Encoder:
    """Load a pre-trained encoder, or build one with random weights.

    Args:
        weights: `package:NAME`, a folder (`./folder`), PANNs' published CNN14 (`./file.pth`), or a hub id;
            None for random weights.
        revision: commit, tag or branch of a hub id.
        architecture: the model's settings for random weights; with weights given, what must agree with them.
        pooling: see `TransformerEncoder`; by default what the weights come with, else the family's.
        kind: which part to take of weights that hold several models, such as CLIP's; "video" for an image
            encoder of each frame.
        projection: see `BlackBoxEncoder`.
    """
    if kind == "video":
        frames = load_encoder(
            weights, revision=revision, architecture=architecture, pooling=pooling, kind="image"
        )
        return VideoEncoder(frames)
    if weights is None:
        if architecture is None:
            raise UserError("An encoder needs weights, or an architecture for random ones.")
        return wrap(build_backbone(read_architecture(architecture)), pooling, projection)
    model = load_backbone(weights, revision, kind)
    for key, value in (architecture or {}).items():
        have = getattr(model.config, key, None)
        if have != value:
            raise UserError(
                f"The weights '{weights}' have {key} = {have}, but the config's architecture says {value}."
            )
    return wrap(model, pooling or _published_pooling(weights), projection)


def empty_encoder(
    weights: str | None,
    *,
    revision: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    projection: int | None = None,
) -> Encoder:
    """The encoder that `load_encoder` gives, without memory for its weights: on the meta device.

    With an architecture nothing is read or downloaded; else only the configuration of the weights.
    """
    part: Kind | None = "image" if kind == "video" else kind
    if architecture is not None:
        config = read_architecture(architecture)
    elif weights is not None:
        config = published_architecture(weights, revision, part)
    else:
        raise UserError("An encoder needs weights, or an architecture for random ones.")
    with torch.device("meta"):
        encoder = wrap(build_backbone(config), projection=projection)
        return VideoEncoder(encoder) if kind == "video" else encoder


def wrap(model: PreTrainedModel, pooling: Pooling | None = None, projection: int | None = None) -> Encoder:
    """A transformers model as an encoder: prompted where its family is known, else a black box.

    Raises:
        UserError: it is of no family this library knows, or takes prompts, so that there is no projection.
    """
    encoder: Encoder
    if model.config.model_type == "timm_wrapper":
        encoder = timm_encoder(model, pooling, projection)
    elif model.config.model_type == "cnn14":
        dim = model.config.embedding_size
        encoder = BlackBoxEncoder(model, dim=dim, kind="audio", output="pooler_output", projection=projection)
    else:
        encoder = TransformerEncoder(model, pooling=pooling)
    if projection is not None and encoder.layer_dims:
        raise UserError(
            f"A projection is for black-box encoders; '{model.config.model_type}' takes prompts: "
            "leave it out."
        )
    return encoder


def _published_pooling(weights: str) -> Pooling | None:
    """The pooling that a sentence-transformers folder was trained with, if it says so."""
    file = Path(resolve(weights)) / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    return "mean" if json.loads(file.read_text()).get("pooling_mode_mean_tokens") else "cls"
