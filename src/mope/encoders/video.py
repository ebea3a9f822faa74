"""Video as frames: an image encoder over each, averaged over time (section IV-B)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mope.encoders.base import Encoder, EncoderOutput
from mope.errors import UserError
from mope.prompts import Projected, PromptSource


class VideoEncoder(Encoder):
    """An image encoder over the frames of a video.

    Prompts belong to the video: a layer asks once per video, with the mean of its frames' x0, and every
    frame gets the same.

    Args:
        frames: any image encoder.

    Raises:
        UserError: it encodes something else.
    """

    def __init__(self, frames: Encoder):
        super().__init__()
        if frames.kind != "image":
            raise UserError(f"A video is encoded frame by frame: an encoder of {frames.kind}s can't do it.")
        self.kind = "video"
        self.frames = frames
        self.layer_dims = frames.layer_dims
        self.pooled_dim = frames.pooled_dim
        self.patch_area = frames.patch_area
        self.commit = frames.commit
        self.reentrant = frames.reentrant

    def forward(self, prompts: PromptSource | None = None, **inputs: Any) -> EncoderOutput:
        """Encode videos.

        Args:
            prompts: asked with the mean over time of x0, (B, D_i).
            inputs: `pixel_values` (B, T, 3, H, W).

        Returns:
            `pooled` averaged over time (B, D); `tokens` of all frames (B, T * N, D).
        """
        pixels: Tensor = inputs["pixel_values"]
        if pixels.ndim != 5:
            raise UserError(f"Videos are (B, T, 3, H, W), not {tuple(pixels.shape)}.")
        batch, time = pixels.shape[:2]

        source = None if prompts is None else _PerFrame(prompts, batch, time)
        output = self.frames(pixel_values=pixels.flatten(0, 1), prompts=source)
        pooled = output.pooled.unflatten(0, (batch, time)).mean(dim=1)
        return EncoderOutput(pooled, output.tokens.unflatten(0, (batch, time)).flatten(1, 2))

    def unused_parameters(self) -> Iterator[nn.Parameter]:
        return self.frames.unused_parameters()

    def units(self) -> Iterator[nn.Module]:
        return self.frames.units()

    def project_prompts(self, layer: int, prompts: Tensor) -> Projected | None:
        return self.frames.project_prompts(layer, prompts)

    def projecting(self, layer: int) -> Iterator[tuple[Mapping[str, nn.Module | None], str]]:
        return self.frames.projecting(layer)

    def freeze(self, dtype: torch.dtype | None = None) -> None:
        self.frames.freeze(dtype)


class _PerFrame(PromptSource):
    """A video's source, for the encoder of its frames."""

    def __init__(self, video: PromptSource, batch: int, time: int):
        self.video, self.batch, self.time = video, batch, time

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        found = self.video(layer, self._per_video(x0))
        return None if found is None else found.repeat_interleave(self.time, dim=0)

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        found = self.video.kept(layer, x0)
        return None if found is None else Projected(*map(self._per_frame, found))

    def rest(self, layer: int, x0: Tensor) -> Tensor | None:
        found = self.video.rest(layer, self._per_video(x0))
        return None if found is None else found.repeat_interleave(self.time, dim=0)

    def bias(self, layer: int) -> Tensor | None:
        bias = self.video.bias(layer)
        return None if bias is None else self._per_frame(bias)

    def _per_video(self, x0: Tensor) -> Tensor:
        return x0.unflatten(0, (self.batch, self.time)).mean(dim=1)

    def _per_frame(self, found: Tensor) -> Tensor:
        """What is a video's for each of its frames; what is everybody's stays so."""
        return found if found.shape[0] == 1 else found.repeat_interleave(self.time, dim=0)
