"""How an encoder's inputs are prepared: what its weights say of pixels, waves and words."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import transformers as hf
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from mope.encoders.cnn14 import wave_extractor
from mope.encoders.sources import resolve, state_of
from mope.errors import UserError


@dataclass(frozen=True)
class ImageSettings:
    """How images were prepared when the weights were trained: side in pixels, mean and std per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_settings(
    weights: str | None, revision: str | None, architecture: Mapping[str, Any] | None
) -> ImageSettings:
    """The settings that weights come with, or ImageNet's for random ones."""
    imagenet = ImageSettings(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if weights is None:
        return replace(imagenet, size=(architecture or {}).get("image_size", imagenet.size))
    try:
        processor = AutoImageProcessor.from_pretrained(resolve(weights), revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The weights '{weights}' say nothing of how images are prepared: {first_line(error)}"
        ) from None
    if (timm := getattr(processor, "data_config", None)) is not None:
        return ImageSettings(timm["input_size"][-1], tuple(timm["mean"]), tuple(timm["std"]))
    side = getattr(processor, "crop_size", None) or processor.size
    size = side.get("height") or side.get("shortest_edge")
    return ImageSettings(size, tuple(processor.image_mean), tuple(processor.image_std))


def load_tokenizer(weights: str | None, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that weights were trained with."""
    if weights is None:
        raise UserError("A text encoder without weights has no tokenizer: name weights that come with one.")
    try:
        return AutoTokenizer.from_pretrained(resolve(weights), revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"The weights '{weights}' come without a tokenizer: {first_line(error)}") from None


def shared_tokenizer(weights: str | None, revision: str | None, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer of all readers in a process that cut texts at the same length.

    Those of other lengths have their own: the length is part of its state, which threads must not change.
    """
    key = (None if weights is None else state_of(weights), revision, max_length)
    found = _tokenizers.get(key)
    if found is None:
        _tokenizers[key] = found = load_tokenizer(weights, revision)
    return found


_tokenizers: WeakValueDictionary[Hashable, PreTrainedTokenizerBase] = WeakValueDictionary()


def load_extractor(
    weights: str | None, revision: str | None, architecture: Mapping[str, Any] | None
) -> hf.SequenceFeatureExtractor:
    """What makes an audio encoder's inputs of waves, as its weights come with, or as its family needs."""
    if weights is not None:
        try:
            return AutoFeatureExtractor.from_pretrained(resolve(weights), revision=revision)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The weights '{weights}' say nothing of how audio is prepared: {first_line(error)}"
            ) from None
    settings = dict(architecture or {})
    name = settings.get("model_type")
    if name == "whisper":
        frames = 2 * settings.get("max_source_positions", 1500)
        return hf.WhisperFeatureExtractor(
            feature_size=settings.get("num_mel_bins", 80), hop_length=160, chunk_length=frames * 160 // 16000
        )
    if name == "audio-spectrogram-transformer":
        return hf.ASTFeatureExtractor(
            num_mel_bins=settings.get("num_mel_bins", 128), max_length=settings.get("max_length", 1024)
        )
    if name == "cnn14":
        return wave_extractor()
    # The group norm of the first wav2vec 2.0 models sees padding, so they were trained without a mask.
    masked = settings.get("feat_extract_norm", "group") == "layer"
    return hf.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=True, return_attention_mask=masked)


def first_line(error: Exception) -> str:
    """What an error says, without the rest."""
    return str(error).strip().split("\n")[0]
