"""Videos: from a cell to evenly spaced frames."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from mope.config import MAX_PIXELS
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.safety import media_of, reason_of

FRAMES = 8
"""Frames that stand for a video (appendix B)."""


def open_video(cell: Any, folder: Path, frames: int = FRAMES) -> list[Image.Image]:
    """Decode evenly spaced frames of a video: the middle one of each of `frames` equal parts.

    A video with fewer frames gives some of them several times.

    Raises:
        BadCell: it is missing, no video, or has no frames.
    """
    _require_package()
    source = media_of(cell, folder, "video")
    try:
        count = _count_frames(source)
        wanted = [int((part + 0.5) * count / frames) for part in range(frames)]
        found: dict[int, Image.Image] = {}
        with open_container(source) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    if frame.width * frame.height > MAX_PIXELS:
                        raise BadCell(f"huge video: frames of {frame.width} x {frame.height} pixels")
                    found[index] = frame.to_image()
                if index >= wanted[-1]:
                    break
    except BadCell:
        raise
    except Exception as error:  # FFmpeg's, and what its bindings stumble over
        raise BadCell(f"broken video, or none this library reads: {reason_of(error)}") from None
    if count == 0 or len(found) < len(set(wanted)):
        raise BadCell("broken video: it has no frames" if not found else "broken video: it ends early")
    return [found[index] for index in wanted]


def peek_video(cell: Any, folder: Path) -> None:
    """Read a video's header: whether there is one to decode.

    Raises:
        BadCell: it is missing, no video, or of a format without a decoder.
    """
    _require_package()
    source = media_of(cell, folder, "video")
    try:
        with open_container(source) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise BadCell("broken video, or none this library reads: it has no pictures")
    except BadCell:
        raise
    except Exception as error:
        raise BadCell(f"broken video, or none this library reads: {reason_of(error)}") from None


def _require_package() -> None:
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError("Video takes the package av: pip install 'mope-fusion[video]'.") from None


def _count_frames(source: Path | io.BytesIO) -> int:
    """Frames of a video that can be decoded: a header's word isn't taken for it."""
    with open_container(source) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise BadCell("a video of a format that this library has no decoder for")
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def open_container(source: Path | io.BytesIO) -> Any:
    """A file or bytes as PyAV reads them, from the start."""
    import av

    if isinstance(source, io.BytesIO):
        source.seek(0)
    return av.open(source)
