"""From a table's cell to what it holds: a picture, a text, a wave, a video's frames; or why it has none."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mope.errors import UserError

FRAMES = 8
"""Frames that stand for a video (appendix B)."""

MAX_PIXELS = 64_000_000
"""Largest image that is decoded; above it a small file can take gigabytes of memory."""


# Characters that no text has by intention: C0 and C1 but tab and line ends, and lone halves of pairs.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


_ORIENTATION = 0x0112
"""Tag of EXIF's note which way is up; from 5 on the picture lies on its side."""


class BadCell(ValueError):
    """A cell that can't be used; the message says why."""


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty or blank text, no bytes and no path."""
    if isinstance(cell, dict):
        return not (cell.get("bytes") or cell.get("path"))
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def source_of(cell: Any, folder: Path, kind: str) -> Path | io.BytesIO:
    """The file or the bytes that a cell names or holds.

    Raises:
        BadCell: it does neither, or there is no such file.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if is_missing(cell):
        raise BadCell(f"no {kind}: the cell is empty")
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where {_an(kind)} is expected")
    file = _inside(cell, folder) if isinstance(folder, UntrustedFolder) else folder / cell
    try:
        there = file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise BadCell(f"missing file {cell!r}" if not cell.isprintable() else f"missing file {cell}")
    if file.stat().st_size == 0:
        raise BadCell(f"broken {kind}: the file is empty")
    return file


class UntrustedFolder(type(Path())):
    """The folder of a table from somebody else, whose paths may name nothing outside it."""


def _inside(cell: str, folder: Path) -> Path:
    """The file that an untrusted cell names.

    Raises:
        BadCell: it is outside the folder, also by way of a link.
    """
    if "\0" in cell or Path(cell).is_absolute() or ".." in Path(cell).parts:
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    file = Path(folder) / cell
    if not file.resolve().is_relative_to(Path(folder).resolve()):
        raise BadCell(f"a path that leaves the table's folder: {cell!r}")
    return file


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def open_image(cell: Any, folder: Path) -> Image.Image:
    """Decode an image cell to RGB.

    Raises:
        BadCell: it is missing, no image, too large or broken.
    """
    if isinstance(cell, Image.Image):
        return _to_rgb(cell)
    file = source_of(cell, folder, "image")
    try:
        # Pillow's own bomb check would warn at half its limit and raise at twice that; ours is one limit.
        with Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadCell(f"huge image: {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise BadCell("wrong type: not an image this library reads") from None
    except Image.DecompressionBombError:
        raise BadCell(f"huge image: at most {MAX_PIXELS:,} pixels are decoded") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        raise BadCell(f"broken image: {error}") from None


def open_pixels(cell: Any, folder: Path) -> Tensor:
    """Decode an image cell to RGB, uint8 (3, height, width): as `open_image`, and faster for a JPEG file.

    Raises:
        BadCell: see `open_image`.
    """
    if not isinstance(cell, Image.Image):
        source = source_of(cell, folder, "image")
        content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        if content.startswith(b"\xff\xd8") and (found := _decode_jpeg(content)) is not None:
            return found
        cell = content
    return torch.from_numpy(numpy.array(open_image(cell, folder))).permute(2, 0, 1)


def _decode_jpeg(content: bytes) -> Tensor | None:
    """A plain JPEG by torchvision; None for what Pillow had better look at, broken ones too."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # announced to move to another package
        return None
    try:
        with Image.open(io.BytesIO(content)) as header:
            plain = header.format == "JPEG" and header.mode in ("RGB", "L")
            if not plain or header.width * header.height > MAX_PIXELS:
                return None
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        found = decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        return found if isinstance(found, Tensor) else None
    except (RuntimeError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def picture_size(cell: Any, folder: Path) -> tuple[int, int]:
    """(height, width) of an image cell, upright; its pixels aren't decoded.

    Raises:
        BadCell: it is missing or no image.
    """
    if isinstance(cell, Image.Image):
        upright = ImageOps.exif_transpose(cell)
        return upright.height, upright.width
    try:
        with Image.open(source_of(cell, folder, "image")) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in range(5, 9)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Image.DecompressionBombError:
        raise BadCell(f"huge image: at most {MAX_PIXELS:,} pixels are decoded") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        raise BadCell("wrong type: not an image this library reads") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB, with transparency laid on white, of 8 bits per channel; the first picture of several."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8; `convert` would cut off what is above 255."""
    values = numpy.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadCell(f"pixels of a kind this library doesn't read: mode {image.mode}")
    return Image.fromarray((values.astype(numpy.uint32) >> 8).astype(numpy.uint8))


def open_text(cell: Any, folder: Path) -> str:
    """A text cell as it is.

    Raises:
        BadCell: it is empty or no text.
    """
    if is_missing(cell):
        raise BadCell("empty text")
    if not isinstance(cell, str):
        raise BadCell(f"wrong type: {type(cell).__name__} where text is expected")
    if found := _CONTROL.search(cell):
        raise BadCell(f"control character U+{ord(found[0]):04X} at position {found.start() + 1}")
    return cell


def open_audio(
    cell: Any, folder: Path, rate: int | None = None, seconds: float | None = None
) -> NDArray[numpy.float32]:
    """Decode an audio cell to one channel, (samples,) from -1 to 1: WAV, FLAC, OGG, MP3, or a video's track.

    Args:
        cell: a path, bytes, or a mapping with `bytes` and `path`.
        folder: what relative paths are relative to.
        rate: sampling rate in Hz to resample to; None to keep the file's.
        seconds: what comes later is left out; None for all.

    Raises:
        BadCell: it is missing, no audio, empty, silent or holds values that aren't numbers.
    """
    try:
        import soundfile
        import soxr
    except ImportError:
        raise UserError("Audio takes the packages soundfile and soxr: pip install 'mope[audio]'.") from None
    source = source_of(cell, folder, "audio")
    try:
        with soundfile.SoundFile(source) as file:
            own = file.samplerate
            frames = -1 if seconds is None else round(seconds * own)
            samples = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        samples, own = _sound_track(source, seconds, str(error).split(": ")[-1])
    if not len(samples):
        raise BadCell("broken audio: it has no samples")
    if not numpy.isfinite(samples).all():
        raise BadCell("broken audio: it has samples that are no numbers")
    if not samples.any():
        raise BadCell("silent audio: every sample is zero")
    return samples if rate in (None, own) else soxr.resample(samples, own, rate)


def reduce_noise(samples: NDArray[numpy.float32], rate: int) -> NDArray[numpy.float32]:
    """Reduce what repeats in the background and keep what varies, such as a voice.

    librosa's vocal separation, as MUStARD's authors use it: each frame is compared with the median of those
    most like it, two seconds away at least, and what that explains is masked. Clips under five seconds stay
    as they are: there is nothing far enough away to compare with.
    """
    try:
        import librosa
    except ImportError:
        raise UserError("Noise reduction takes the package librosa: pip install 'mope[audio]'.") from None
    if len(samples) < 5 * rate:
        return samples
    magnitude, phase = librosa.magphase(librosa.stft(samples))
    width = int(librosa.time_to_frames(2, sr=rate))
    background = librosa.decompose.nn_filter(magnitude, aggregate=numpy.median, metric="cosine", width=width)
    background = numpy.minimum(magnitude, background)
    mask = librosa.util.softmask(magnitude - background, 10 * background, power=2)
    return librosa.istft(mask * magnitude * phase, length=len(samples)).astype(numpy.float32)


def _sound_track(
    source: Path | io.BytesIO, seconds: float | None, reason: str
) -> tuple[NDArray[numpy.float32], int]:
    """Samples and rate of a file that soundfile can't read: the first sound track that FFmpeg finds.

    Raises:
        BadCell: it finds none, or the package av isn't there; with soundfile's reason.
    """
    bad = BadCell(f"broken audio, or none this library reads: {reason}")
    try:
        import av
        import av.error
    except ImportError:
        raise bad from None
    try:
        with _container(source) as container:
            if not container.streams.audio:
                raise bad
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise bad
            rate, parts, count = stream.rate, [], 0
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(stream):
                parts += [resampled.to_ndarray()[0] for resampled in resampler.resample(frame)]
                count += len(parts[-1]) if parts else 0
                if seconds is not None and count >= seconds * rate:
                    break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        raise bad from None
    samples = numpy.concatenate(parts).astype(numpy.float32) if parts else numpy.zeros(0, numpy.float32)
    return (samples if seconds is None else samples[: round(seconds * rate)]), rate


def open_video(cell: Any, folder: Path, frames: int = FRAMES) -> list[Image.Image]:
    """Decode evenly spaced frames of a video: the middle one of each of `frames` equal parts.

    A video with fewer frames gives some of them several times.

    Raises:
        BadCell: it is missing, no video, or has no frames.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise UserError("Video takes the package av: pip install 'mope[video]'.") from None
    source = source_of(cell, folder, "video")
    try:
        count = _count_frames(source)
        wanted = [int((part + 0.5) * count / frames) for part in range(frames)]
        found: dict[int, Image.Image] = {}
        with _container(source) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    if frame.width * frame.height > MAX_PIXELS:
                        raise BadCell(f"huge video: frames of {frame.width} x {frame.height} pixels")
                    found[index] = frame.to_image()
                if index >= wanted[-1]:
                    break
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        if isinstance(error, BadCell):
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadCell(f"broken video, or none this library reads: {reason}") from None
    if count == 0 or len(found) < len(set(wanted)):
        raise BadCell("broken video: it has no frames" if not found else "broken video: it ends early")
    return [found[index] for index in wanted]


def _count_frames(source: Path | io.BytesIO) -> int:
    """Frames of a video that can be decoded: a header's word isn't taken for it."""
    with _container(source) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise BadCell("a video of a format that this library has no decoder for")
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def _container(source: Path | io.BytesIO) -> Any:
    import av

    if isinstance(source, io.BytesIO):
        source.seek(0)
    return av.open(source)


OPENERS: dict[str, Callable[[Any, Path], Any]] = {
    "image": open_image,
    "text": open_text,
    "audio": open_audio,
    "video": open_video,
}
"""What opens a cell, or says why it can't, by the kind of an input."""
