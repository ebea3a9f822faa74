"""A cell's content: pictures, texts, waves, frames, masks, numbers. It knows nothing of tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mope.media.audio import open_audio, peek_audio
from mope.media.images import open_image, picture_size
from mope.media.texts import open_text
from mope.media.values import VALUES
from mope.media.video import open_video, peek_video

OPENERS: dict[str, Callable[[Any, Path], Any]] = {
    "image": open_image,
    "text": open_text,
    "audio": open_audio,
    "video": open_video,
    **VALUES,
}
"""What opens a cell, or says why it can't, by the kind of an input, or by what a table's column holds."""

PEEKERS: dict[str, Callable[[Any, Path], Any]] = {
    "image": picture_size,
    "text": open_text,
    "audio": peek_audio,
    "video": peek_video,
    **VALUES,
}
"""The same from a cell's header alone: fast, and blind to what is broken behind it."""
