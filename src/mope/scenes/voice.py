"""Spoken vowels from their formants: a voice that needs no recording and no other program."""

import random
import wave
from pathlib import Path

import numpy
from numpy.typing import NDArray

RATE = 16000
"""Samples per second."""

VOWELS = {"ee": (270, 2290, 3010), "ah": (730, 1090, 2440), "oo": (300, 870, 2240), "ae": (660, 1720, 2410)}
"""Mean formants of men in Hz (Peterson and Barney 1952, J. Acoust. Soc. Am. 24)."""

_WIDTHS = (80.0, 100.0, 140.0)  # of the formants' resonances, in Hz
_LOUDNESS = (1.0, 0.5, 0.25)


def speak(vowel: str, rng: random.Random, seconds: float = 0.5) -> NDArray[numpy.float32]:
    """One vowel by a speaker drawn anew: pitch, length of the vocal tract, pace and noise differ.

    Args:
        vowel: of `VOWELS`.
        rng: draws the speaker.
        seconds: of the clip; the vowel takes a half to nine tenths of it.

    Returns:
        (samples,) from -1 to 1.
    """
    count = round(seconds * RATE)
    length = round(count * rng.uniform(0.5, 0.9))
    time = numpy.arange(length) / RATE
    pitch, glide = rng.uniform(90, 240), rng.uniform(-0.2, 0.1)
    phase = 2 * numpy.pi * numpy.cumsum(pitch * (1 + glide * time / time[-1])) / RATE
    tract = rng.uniform(0.95, 1.2)  # women's and children's are shorter
    numbers = numpy.arange(1, int(4500 / pitch) + 1)
    amplitudes = numpy.zeros(len(numbers))
    for formant, width, loudness in zip(VOWELS[vowel], _WIDTHS, _LOUDNESS, strict=True):
        amplitudes += loudness / (1 + ((numbers * pitch - formant * tract) / width) ** 2)
    starts = numpy.array([rng.uniform(0, 0.5) for _ in numbers])
    tone = (amplitudes[:, None] * numpy.sin(numbers[:, None] * phase + starts[:, None])).sum(axis=0)
    edge = round(0.03 * RATE)
    ramp = numpy.minimum(1, numpy.minimum(numpy.arange(length) + 1, length - numpy.arange(length)) / edge)
    clip = numpy.zeros(count)
    begin = rng.randrange(count - length + 1)
    clip[begin : begin + length] = ramp * tone / numpy.abs(tone).max()
    noise = numpy.random.default_rng(rng.randrange(2**32)).standard_normal(count)
    clip = rng.uniform(0.3, 0.8) * (clip + rng.uniform(0.005, 0.05) * noise)
    return numpy.clip(clip, -1, 1).astype(numpy.float32)


def save_wave(samples: NDArray[numpy.float32], file: Path) -> None:
    """Write samples as a WAV file of 16 bits."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
