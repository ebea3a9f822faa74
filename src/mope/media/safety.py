"""Media from strangers: what they are by their first bytes, and how large, before anything decodes them.

FFmpeg takes a file for what it looks like, and some kinds of file are lists of other files and addresses,
which it then opens. So only containers that hold their own content are let through. Pillow starts another
program for some kinds of picture: these are read for nobody.
"""

import io
import os
import re
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mope.config import MediaLimits
from mope.errors import UserError, shown
from mope.media.cells import BadCell, UntrustedFolder, source_of

PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""What pictures may be, whoever they are from."""

_FASTEST = 240
"""Frames per second above which a video is none."""

_WORK = 1920 * 1080 * 60
"""Pixels that are decoded for each second that a video may have: all its frames together have no more."""

# What FFmpeg takes for a list of other files or addresses wherever it stands near a file's start.
_LISTS = re.compile(
    rb"#EXTM3U|ffconcat|dash:profile|profile:dash|<CompositionPlaylist|c=IN IP", re.IGNORECASE
)
_PROBED = 2**21


class TooLarge(BadCell):
    """Media beyond the limits.

    Attributes:
        what: which limit: bytes, pixels or seconds.
    """

    def __init__(self, what: str, message: str):
        super().__init__(message)
        self.what = what


def limits_of(folder: Path) -> MediaLimits | None:
    """The limits of media in a table's folder; None where the table is trusted."""
    return folder.limits if isinstance(folder, UntrustedFolder) else None


def media_of(cell: Any, folder: Path, kind: str) -> Path | io.BytesIO:
    """The file or the bytes of a cell, as `source_of`; of a table that isn't trusted the bytes, once they are
    known to be safe to decode.

    Raises:
        BadCell: there are none; or, where the table isn't trusted, see `check_media`.
    """
    source = source_of(cell, folder, kind)
    limits = limits_of(folder)
    if limits is None:
        return source
    content = source.getvalue() if isinstance(source, io.BytesIO) else _read(source, limits)
    check_media(kind, content, limits)
    return io.BytesIO(content)


def _read(file: Path, limits: MediaLimits) -> bytes:
    """A file's bytes, of one too large only so many that this shows.

    It is looked at again once it is open: whoever may write into the folder may put another in its place.
    """
    try:
        with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadCell("not a file any more")
            return opened.read(limits.bytes + 1)
    except OSError as error:
        raise BadCell(f"can't be read: {error.strerror}") from None


class SoundBytes(io.BytesIO):
    """Bytes for soundfile, which would print a traceback where a broken header leads before their start."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def open_sound(source: Path | io.BytesIO) -> Any:
    """A sound as soundfile's `SoundFile`, which must be installed."""
    import soundfile

    return soundfile.SoundFile(source if isinstance(source, Path) else SoundBytes(source.getvalue()))


def open_picture(source: Path | io.BytesIO) -> Image.Image:
    """A picture of one of the formats that are read, by its first bytes; its pixels aren't decoded yet."""
    return Image.open(source, formats=_picture_formats())


@cache
def _picture_formats() -> tuple[str, ...]:
    """Those of `PICTURES` that this Pillow has."""
    Image.init()
    return tuple(name for name in PICTURES if name in Image.OPEN)


def reason_of(error: Exception) -> str:
    """Why something couldn't be decoded, in a few words and without the file's whole path."""
    return shown(str(getattr(error, "strerror", None) or error or type(error).__name__), 100).rstrip(".")


def check_media(kind: str, content: bytes, limits: MediaLimits) -> None:
    """Make sure that content can be decoded safely and within the limits; an empty one is left to the reader.

    Raises:
        TooLarge: it is larger or longer than the limits.
        BadCell: it is of another kind, or of a format that isn't taken.
    """
    if len(content) > limits.bytes:
        raise TooLarge("bytes", f"larger than {limits.megabytes:g} MB")
    if content:
        _CHECKS[kind](content, limits)


def _check_image(content: bytes, limits: MediaLimits) -> None:
    try:
        with open_picture(io.BytesIO(content)) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise BadCell(f"wrong type: not an image this library reads ({', '.join(PICTURES)})") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels("a picture of very many", limits) from None
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise BadCell(f"broken image: {reason_of(error)}") from None
    _check_pixels(width, height, limits)


def _check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.pixels:
        raise _too_many_pixels(f"a picture of {width} x {height}", limits)


def _too_many_pixels(what: str, limits: MediaLimits) -> TooLarge:
    return TooLarge("pixels", f"{what} pixels: at most {limits.pixels:,} are taken")


def _check_seconds(seconds: float, limits: MediaLimits) -> None:
    if seconds > limits.seconds:
        raise TooLarge("seconds", f"{seconds:.1f} seconds: at most {limits.seconds:g} are taken")


def _check_audio(content: bytes, limits: MediaLimits) -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError:
        raise UserError("Audio takes the package soundfile: pip install 'mope-fusion[audio]'.") from None
    if not (_is_sound(content) or _is_film(content)):
        raise BadCell("wrong type: not audio this library reads (WAV, FLAC, OGG, MP3, or a video's track)")
    if _LISTS.search(content, 0, _PROBED):
        raise BadCell("wrong type: a list of files, not audio")
    try:
        with open_sound(io.BytesIO(content)) as file:
            seconds = file.frames / file.samplerate
    except Exception:  # one that FFmpeg may read
        _check_stream(content, "audio", limits)
    else:
        _check_seconds(seconds, limits)


def _check_video(content: bytes, limits: MediaLimits) -> None:
    if not _is_film(content):
        raise BadCell("wrong type: not a video this library reads (MP4, MOV, WebM, MKV, AVI, GIF)")
    _check_stream(content, "video", limits)


def _check_stream(content: bytes, kind: str, limits: MediaLimits) -> None:
    """Length by the time stamps of its packets, which are read without decoding them."""
    try:
        import av
        import av.error
    except ImportError:
        raise BadCell(f"no {kind} that can be read without the package av") from None
    if _LISTS.search(content, 0, _PROBED):
        raise BadCell(f"wrong type: a list of files, not {kind}")
    try:
        with av.open(io.BytesIO(content), "r") as container:
            stream: Any = container.streams.get({kind: 0})[0]
            if stream.codec_context is None:
                raise BadCell(f"{kind} of a format that this library has no decoder for")
            if kind == "video":
                _check_pixels(stream.width, stream.height, limits)
            packets, base = 0, float(stream.time_base or 0)
            first, last = float("inf"), 0.0
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.pts is not None:
                    first = min(first, packet.pts * base)
                    last = max(last, (packet.pts + (packet.duration or 0)) * base)
            pixels = stream.width * stream.height * packets if kind == "video" else 0
    except BadCell:
        raise
    except Exception as error:  # FFmpeg's, and what its bindings stumble over
        raise BadCell(f"broken {kind}, or none this library reads: {reason_of(error)}") from None
    _check_seconds(max(last - first, 0.0), limits)
    if kind == "video":
        _check_seconds(packets / _FASTEST, limits)
        if pixels > _WORK * limits.seconds:
            raise TooLarge("pixels", f"{packets} frames of so many pixels: fewer or smaller ones are taken")


def _is_film(content: bytes) -> bool:
    """Whether it is a container of video that holds all of its content: MP4, MOV, Matroska, AVI, GIF."""
    if content.startswith(b"ID3"):  # FFmpeg would look behind that note
        return False
    return (
        content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or content.startswith((b"\x1a\x45\xdf\xa3", b"GIF87a", b"GIF89a"))
        or (content.startswith(b"RIFF") and content[8:12] == b"AVI ")
    )


def _is_sound(content: bytes) -> bool:
    """Whether it is a file of sound: WAV, FLAC, OGG, AIFF, AU, or MPEG audio."""
    at = 0
    while content.startswith(b"ID3", at):  # a note in front of MPEG audio, under which anything could hide
        size = 0
        for byte in content[at + 6 : at + 10]:
            size = size << 7 | byte & 127
        has_footer = len(content) > at + 5 and content[at + 5] & 0x10
        at += 10 + size + (10 if has_footer else 0)
    content = content[at : at + 12]
    is_mpeg = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0
    is_wave = content.startswith((b"RIFF", b"RF64")) and content[8:12] == b"WAVE"
    return is_mpeg or is_wave or content.startswith((b"fLaC", b"OggS", b"FORM", b".snd"))


_CHECKS: dict[str, Callable[[bytes, MediaLimits], None]] = {
    "image": _check_image,
    "mask": _check_image,
    "audio": _check_audio,
    "video": _check_video,
    "text": lambda content, limits: None,
}
