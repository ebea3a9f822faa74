"""CNN14 of PANNs (Kong et al. 2020, arXiv 1912.10211), for loading its published checkpoint.

Written as a transformers model, so that a folder of it is one like any other. The log-mel front end is part
of it: its filter bank is in the checkpoint, its Fourier transform is `torch.stft`.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import Wav2Vec2FeatureExtractor as Waves
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mope.errors import UserError


class Cnn14Config(PreTrainedConfig):
    """Settings of CNN14; the defaults are the published model's.

    Attributes:
        channels: of the six blocks.
        embedding_size: width of the embedding.
        sampling_rate: of the wave, in Hz.
        window, hop: of the Fourier transform, in samples.
        mel_bins, lowest, highest: number of mel bands, and the range they cover in Hz.
    """

    model_type = "cnn14"

    channels: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    embedding_size: int = 2048
    sampling_rate: int = 32000
    window: int = 1024
    hop: int = 320
    mel_bins: int = 64
    lowest: float = 50.0
    highest: float = 14000.0


class _Block(nn.Module):
    """Two convolutions of 3 x 3, normed, then average pooling."""

    def __init__(self, inputs: int, outputs: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.avg_pool2d(x, self.pool) if self.pool > 1 else x


class Cnn14Model(PreTrainedModel):
    """Waves to an embedding.

    Args:
        config: its settings.
    """

    mel: Tensor

    config_class = Cnn14Config
    main_input_name = "input_values"
    base_model_prefix = "cnn14"

    def __init__(self, config: Cnn14Config):
        super().__init__(config)
        bank = mel_filter_bank(
            config.window // 2 + 1,
            config.mel_bins,
            config.lowest,
            config.highest,
            config.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("mel", torch.from_numpy(bank).float())
        self.bn0 = nn.BatchNorm2d(config.mel_bins)
        widths = [1, *config.channels]
        last = len(config.channels) - 1
        self.blocks = nn.ModuleList(
            _Block(inputs, outputs, 1 if place == last else 2)
            for place, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.fc1 = nn.Linear(widths[-1], config.embedding_size)
        self.dropout, self.last_dropout = nn.Dropout(0.2), nn.Dropout(0.5)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Tensor], name: str = "the checkpoint") -> "Cnn14Model":
        """The published model from its state dict.

        Args:
            state: what lies under "model" in the published file.
            name: how messages call it.

        Raises:
            UserError: a tensor is missing or of another shape.
        """
        blocks = sum(key.endswith(".conv1.weight") for key in state)
        channels = [len(state[f"conv_block{place}.conv1.weight"]) for place in range(1, blocks + 1)]
        embedding = len(state["fc1.weight"]) if "fc1.weight" in state else 2048
        model = cls(Cnn14Config(channels=channels or [64], embedding_size=embedding))
        own = {}
        for key in model.state_dict():
            theirs = key
            if key == "mel":
                theirs = "logmel_extractor.melW"
            elif key.startswith("blocks."):
                _, place, rest = key.split(".", 2)
                theirs = f"conv_block{int(place) + 1}.{rest}"
            if theirs not in state or state[theirs].shape != model.state_dict()[key].shape:
                raise UserError(f"{name} isn't PANNs' CNN14: '{theirs}' is missing or of another shape.")
            own[key] = state[theirs]
        model.load_state_dict(own)
        return model.eval()

    def log_mel(self, waves: Tensor) -> Tensor:
        """Waves (B, samples) as log-mel spectrograms in dB, (B, 1, frames, mel bins)."""
        config = self.config
        window = torch.hann_window(config.window, device=waves.device)
        spectrum = torch.stft(
            waves.float(), config.window, config.hop, window=window, pad_mode="reflect", return_complex=True
        )
        power = spectrum.abs().square().transpose(1, 2)
        return 10 * (power @ self.mel).clamp(min=1e-10).log10().unsqueeze(1)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed waves.

        Clips of one length go through together: convolutions would carry a padded clip's silence into it,
        and its embedding would depend on its batch.

        Args:
            input_values: waves (B, samples) from -1 to 1; a clip shorter than its 2^5 pooled frames is
                padded with silence.
            attention_mask: (B, samples), nonzero for real samples; None where all are.
            kwargs: ignored.

        Returns:
            `pooler_output` (B, D), and as `last_hidden_state` the same as one token.
        """
        if attention_mask is None:
            embedding = self._embed(input_values)
        else:
            lengths = attention_mask.sum(dim=1)
            found = {}
            for length in lengths.unique().tolist():
                rows = (lengths == length).nonzero().squeeze(1)
                for row, feature in zip(
                    rows.tolist(), self._embed(input_values[rows, : int(length)]), strict=True
                ):
                    found[row] = feature
            embedding = torch.stack([found[row] for row in range(len(lengths))])
        return BaseModelOutputWithPooling(last_hidden_state=embedding.unsqueeze(1), pooler_output=embedding)

    def _embed(self, waves: Tensor) -> Tensor:
        least = self.config.hop * 2 ** (len(self.blocks) - 1)
        waves = functional.pad(waves, (0, max(0, least - waves.shape[1])))
        with torch.autocast(waves.device.type, enabled=False):  # decibels need float32
            x = self.log_mel(waves)
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for block in self.blocks:
            x = self.dropout(block(x))
        x = x.mean(dim=3)
        x = x.amax(dim=2) + x.mean(dim=2)
        return functional.relu(self.fc1(self.last_dropout(x)))


def wave_extractor() -> Waves:
    """What makes CNN14's inputs of waves."""
    return Waves(sampling_rate=Cnn14Config.sampling_rate, do_normalize=False, return_attention_mask=True)


AutoConfig.register("cnn14", Cnn14Config, exist_ok=True)
AutoModel.register(Cnn14Config, Cnn14Model, exist_ok=True)
AutoFeatureExtractor.register(Cnn14Config, Waves, exist_ok=True)
