"""Media from strangers: what they are by their first bytes, and how large, before anything decodes them.

FFmpeg takes a file for what it looks like, and some kinds of file are lists of other files and addresses,
which it then opens. So only containers that hold their own content are let through.
"""

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from PIL import Image, UnidentifiedImageError

from mope.errors import UserError
from mope.media.cells import BadCell
from mope.serve.limits import Refusal
from mope.serve.settings import ServeSettings

_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""What images may be. Pillow reads more, one of them by starting another program."""

_FASTEST = 240
"""Frames per second above which a video is none."""

_WORK = 1920 * 1080 * 60
"""Pixels that are decoded for each second that a video may have: all its frames together have no more."""

# What FFmpeg takes for a list of other files or addresses wherever it stands near a file's start.
_LISTS = re.compile(
    rb"#EXTM3U|ffconcat|dash:profile|profile:dash|<CompositionPlaylist|c=IN IP", re.IGNORECASE
)
_PROBED = 2**21


def decode_base64(text: str) -> bytes:
    """Bytes from base64, plain or as a data URI; line ends don't matter.

    Raises:
        BadCell: it is neither; a path or an address isn't.
    """
    if text[:5].lower() == "data:":
        head, _, rest = text.partition(",")
        text = rest if head[-7:].lower() == ";base64" else text
    if "\n" in text or " " in text:
        text = "".join(text.split())
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        reason = "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error).lower()
        raise BadCell(f"not base64 ({reason}); a file's content is wanted, not its name") from None


def check_media(kind: str, content: bytes, settings: ServeSettings) -> None:
    """Make sure that content can be decoded safely and within the limits; an empty one is left to the reader.

    Raises:
        BadCell: it is of another kind, or of a format that isn't taken.
        Refusal: it is larger or longer than the limits.
    """
    if content:
        _CHECKS[kind](content, settings)


def _check_image(content: bytes, settings: ServeSettings) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=_picture_formats()) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise BadCell(f"wrong type: not an image this server reads ({', '.join(_PICTURES)})") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels("A picture of very many", settings) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadCell(f"broken image: {error}") from None
    _check_pixels(width, height, settings)


@cache
def _picture_formats() -> tuple[str, ...]:
    """Those of `_PICTURES` that this Pillow has."""
    Image.init()
    return tuple(name for name in _PICTURES if name in Image.OPEN)


def _check_pixels(width: int, height: int, settings: ServeSettings) -> None:
    if width * height > settings.pixels:
        raise _too_many_pixels(f"A picture of {width} x {height}", settings)


def _too_many_pixels(what: str, settings: ServeSettings) -> Refusal:
    return Refusal(413, "pixels", f"{what} pixels: at most {settings.pixels:,} are taken.")


def _check_seconds(seconds: float, settings: ServeSettings) -> None:
    if seconds > settings.seconds:
        raise Refusal(413, "seconds", f"{seconds:.1f} seconds: at most {settings.seconds:g} are taken.")


def _check_audio(content: bytes, settings: ServeSettings) -> None:
    import soundfile

    if not (_is_sound(content) or _is_film(content)):
        raise BadCell("wrong type: not audio this server reads (WAV, FLAC, OGG, MP3, or a video's track)")
    if _LISTS.search(content, 0, _PROBED):
        raise BadCell("wrong type: a list of files, not audio")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_seconds(file.frames / file.samplerate, settings)
    except (soundfile.SoundFileError, OSError, ValueError):
        _check_stream(content, "audio", settings)


def _check_video(content: bytes, settings: ServeSettings) -> None:
    if not _is_film(content):
        raise BadCell("wrong type: not a video this server reads (MP4, MOV, WebM, MKV, AVI, GIF)")
    _check_stream(content, "video", settings)


def _check_stream(content: bytes, kind: str, settings: ServeSettings) -> None:
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
                raise BadCell(f"{kind} of a format that this server has no decoder for")
            if kind == "video":
                _check_pixels(stream.width, stream.height, settings)
            packets, base = 0, float(stream.time_base or 0)
            first, last = float("inf"), 0.0
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.pts is not None:
                    first = min(first, packet.pts * base)
                    last = max(last, (packet.pts + (packet.duration or 0)) * base)
            pixels = stream.width * stream.height * packets if kind == "video" else 0
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadCell(f"broken {kind}, or none this server reads: {reason}") from None
    _check_seconds(max(last - first, 0.0), settings)
    if kind == "video":
        _check_seconds(packets / _FASTEST, settings)
        if pixels > _WORK * settings.seconds:
            raise Refusal(413, "pixels", f"{packets} frames of so many pixels: take fewer or smaller ones.")


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


def _check_text(content: bytes, settings: ServeSettings) -> None:
    """Texts have their own limit, in the request's schema."""


_CHECKS: dict[str, Callable[[bytes, ServeSettings], None]] = {
    "image": _check_image,
    "audio": _check_audio,
    "video": _check_video,
    "text": _check_text,
}


def require_packages(kinds: Iterable[str]) -> None:
    """Make sure that what reads these kinds is installed, before the first caller finds that it isn't.

    Raises:
        UserError: saying what to install.
    """
    needed = {"audio": ("soundfile", "soxr"), "video": ("av",)}
    for kind in kinds:
        for name in needed.get(kind, ()):
            try:
                __import__(name)
            except ImportError:
                raise UserError(
                    f"The run reads {kind}, which takes {name}: pip install 'mope-fusion[{kind}]'."
                ) from None
