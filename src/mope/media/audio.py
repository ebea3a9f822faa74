"""Sound: from a cell to a wave."""

import io
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from mope.errors import UserError
from mope.media.cells import BadCell
from mope.media.safety import media_of, open_sound, reason_of
from mope.media.video import open_container


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
    soxr = _packages()
    source = media_of(cell, folder, "audio")
    try:
        with open_sound(source) as file:
            own = file.samplerate
            frames = -1 if seconds is None else round(seconds * own)
            samples = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except Exception as error:  # also no memory for what a header promises
        samples, own = _sound_track(source, seconds, reason_of(error).split(": ")[-1])
    if not len(samples):
        raise BadCell("broken audio: it has no samples")
    if not numpy.isfinite(samples).all():
        raise BadCell("broken audio: it has samples that are no numbers")
    if not samples.any():
        raise BadCell("silent audio: every sample is zero")
    try:
        return samples if rate in (None, own) else soxr.resample(samples, own, rate)
    except Exception as error:
        raise BadCell(f"broken audio: {own} samples per second, {reason_of(error)}") from None


def peek_audio(cell: Any, folder: Path) -> None:
    """Read a sound's header: whether there is one to decode.

    Raises:
        BadCell: it is missing, no audio, or has no samples.
    """
    _packages()
    source = media_of(cell, folder, "audio")
    try:
        with open_sound(source) as file:
            found = file.frames
    except Exception:
        found = None
    if found == 0:
        raise BadCell("broken audio: it has no samples")
    if found is None:
        open_audio(cell, folder, seconds=0.1)  # a video's sound track, or nothing


def _packages() -> Any:
    """Makes sure that what reads sounds is there; soxr, which resamples."""
    try:
        import soundfile  # noqa: F401
        import soxr
    except ImportError:
        raise UserError(
            "Audio takes the packages soundfile and soxr: pip install 'mope-fusion[audio]'."
        ) from None
    return soxr


def reduce_noise(samples: NDArray[numpy.float32], rate: int) -> NDArray[numpy.float32]:
    """Reduce what repeats in the background and keep what varies, such as a voice.

    librosa's vocal separation, as MUStARD's authors use it: each frame is compared with the median of those
    most like it, two seconds away at least, and what that explains is masked. Clips under five seconds stay
    as they are: there is nothing far enough away to compare with.
    """
    try:
        import librosa
    except ImportError:
        raise UserError(
            "Noise reduction takes the package librosa: pip install 'mope-fusion[audio]'."
        ) from None
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
    except ImportError:
        raise bad from None
    try:
        with open_container(source) as container:
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
    except Exception:  # FFmpeg's, and what its bindings stumble over
        raise bad from None
    samples = numpy.concatenate(parts).astype(numpy.float32) if parts else numpy.zeros(0, numpy.float32)
    return (samples if seconds is None else samples[: round(seconds * rate)]), rate
