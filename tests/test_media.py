"""Sound and video: from files to tensors, and through a whole run with three modalities."""

import csv
import io
from pathlib import Path

import av
import numpy
import pytest
import soundfile
import torch
import transformers as hf
from PIL import Image

from mope.bulk import evaluate
from mope.config import Config
from mope.data.check import guess_columns
from mope.data.readers import build_readers
from mope.data.table import open_table
from mope.media.audio import open_audio
from mope.media.cells import BadCell
from mope.media.video import open_video
from mope.predictor import Predictor
from mope.training import train

RATE = 16000
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tone(hertz: float, seconds: float = 0.3, rate: int = RATE) -> numpy.ndarray:
    return 0.5 * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(seconds * rate)) / rate)


def write_video(file, shades, size=(32, 24)) -> None:
    """A video whose frames are of these shades of grey."""
    with av.open(file, "w", format="mp4" if hasattr(file, "write") else None) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shade in shades:
            picture = Image.new("RGB", size, (shade, shade, shade))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


@pytest.mark.parametrize(("suffix", "error"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.1), ("mp3", 0.1)])
def test_audio_of_every_format_is_one_channel_at_the_wanted_rate(tmp_path, suffix, error):
    left, right = tone(440, 1, 44100), tone(880, 1, 44100)
    soundfile.write(tmp_path / f"a.{suffix}", numpy.stack([left, right], axis=1), 44100)
    samples = open_audio(f"a.{suffix}", tmp_path, rate=RATE)
    assert samples.dtype == numpy.float32
    assert len(samples) == pytest.approx(RATE, abs=RATE * 0.1)  # MP3 pads at the end
    spectrum = numpy.abs(numpy.fft.rfft(samples[:RATE]))
    assert set(numpy.argsort(spectrum)[-2:]) == {440, 880}
    whole = open_audio(f"a.{suffix}", tmp_path)
    numpy.testing.assert_allclose(whole[2000:40000], ((left + right) / 2)[2000:40000], atol=error)
    cut = open_audio((tmp_path / f"a.{suffix}").read_bytes(), Path(), seconds=0.5)
    numpy.testing.assert_array_equal(cut, whole[: len(cut)])
    assert len(cut) == 22050


def _not_numbers() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, numpy.full(100, numpy.nan), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _wav(samples) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "no audio: the cell is empty"),
        ("nothing.wav", "missing file nothing.wav"),
        (7, "wrong type: int where an audio is expected"),
        (b"no sound at all", "broken audio, or none this library reads"),
        (_wav(numpy.zeros(0)), "it has no samples"),
        (_wav(numpy.zeros(500)), "silent audio"),
        (_not_numbers(), "samples that are no numbers"),
    ],
)
def test_bad_audio_says_why(tmp_path, cell, reason):
    with pytest.raises(BadCell, match=reason):
        open_audio(cell, tmp_path)


def test_eight_even_frames_of_a_video(tmp_path):
    write_video(str(tmp_path / "v.mp4"), range(0, 240, 10))  # 24 frames: parts of three, their middle ones
    for cell in ("v.mp4", (tmp_path / "v.mp4").read_bytes()):
        frames = open_video(cell, tmp_path)
        shades = [numpy.asarray(frame).mean() for frame in frames]
        assert shades == pytest.approx([10 + 30 * part for part in range(8)], abs=4)
        assert frames[0].size == (32, 24)
    write_video(str(tmp_path / "short.mp4"), [50, 200])
    shades = [numpy.asarray(frame).mean() for frame in open_video("short.mp4", tmp_path)]
    assert shades == pytest.approx([50] * 4 + [200] * 4, abs=4)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "no video: the cell is empty"),
        ("nothing.mp4", "missing file"),
        ("empty.mp4", "the file is empty"),
        (b"no video at all", "broken video, or none this library reads"),
        (_wav(tone(440)), "broken video, or none this library reads"),
    ],
)
def test_bad_videos_say_why(tmp_path, cell, reason):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(BadCell, match=reason):
        open_video(cell, tmp_path)


def test_a_truncated_video_says_why(tmp_path):
    rng = numpy.random.default_rng(0)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(30):
            noise = rng.integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise)))
        container.mux(stream.encode())
    whole = (tmp_path / "v.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert len(open_video("cut.mkv", tmp_path)) == 8  # the frames that are there
    reasons = set()
    for size in range(50, 1000, 50):  # from half a header to a whole one and no frame
        with pytest.raises(BadCell, match="broken video") as raised:
            open_video(whole[:size], tmp_path)
        reasons.add(str(raised.value))
    assert "broken video: it has no frames" in reasons


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Clips whose pitch, brightness or word says high or low."""
    root = tmp_path_factory.mktemp("clips")
    rng = numpy.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        rows = []
        for number in range(count):
            name, high = f"{split}_{number}", bool(number % 2)
            length = 0.05 + 0.05 * rng.random()
            soundfile.write(root / f"{name}.wav", tone(2000 if high else 200, length), RATE)
            write_video(str(root / f"{name}.mp4"), rng.integers(100, 255, 9) if high else range(9))
            rows.append(
                {
                    "sound": f"{name}.wav",
                    "film": f"{name}.mp4",
                    "words": "what is left" if high else "what is right",
                    "label": "high" if high else "low",
                }
            )
        with (root / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture
def config(clips: Path, weights: dict[str, str], tmp_path: Path) -> Config:
    """Sound, film and words, with sound as the main input."""
    waves = {
        **SHAPE,
        "model_type": "wav2vec2",
        "feat_extract_norm": "layer",
        "conv_dim": [16, 16],
        "conv_stride": [4, 4],
        "conv_kernel": [8, 4],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    frames = {**SHAPE, "model_type": "vit", "image_size": 16, "patch_size": 8}
    return Config.parse(
        {
            "inputs": {
                "audio": {"kind": "audio", "column": "sound", "encoder": {"architecture": waves}},
                "video": {"kind": "video", "column": "film", "encoder": {"architecture": frames}},
                "text": {
                    "kind": "text",
                    "column": "words",
                    "max_length": 16,
                    "encoder": {"weights": weights["text"], "tuning": "prompt"},
                },
            },
            "fusion": {"main": "audio", "length": 2, "experts": 3},
            "data": {
                **{split: str(clips / f"{split}.csv") for split in ("train", "validation", "test")},
                "workers": 0,
            },
            "training": {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
    )


@pytest.mark.parametrize("main", ["audio", "video", "text"])
def test_three_modalities_from_a_table_to_predictions(config: Config, main, monkeypatch, tmp_path):
    monkeypatch.setenv("MOPE_CACHE", str(tmp_path / "cache"))
    config.fusion.main = main
    config.inputs["text"].encoder.tuning = "frozen" if main == "text" else "prompt"
    # Random weights aren't saved, so every encoder is given some.
    for name in ("audio", "video"):
        settings = config.inputs[name].encoder
        architecture = dict(settings.architecture)
        kind = architecture.pop("model_type")
        folder = tmp_path / name
        if kind == "vit":
            hf.ViTModel(hf.ViTConfig(**architecture), add_pooling_layer=False).save_pretrained(folder)
            hf.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
        else:
            hf.Wav2Vec2Model(hf.Wav2Vec2Config(**architecture)).save_pretrained(folder)
            hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        settings.weights, settings.architecture = str(folder), None
    train(config, report=lambda line: None)
    assert evaluate(config.output, report=lambda line: None)["rows"] == 8
    predictor = Predictor(config.output, batch_size=8)
    rows = list(open_table(config.data.test))
    folder = Path(config.data.test).parent
    for row in rows:
        row["sound"], row["film"] = (str(folder / row[name]) for name in ("sound", "film"))
    together = predictor.predict(rows)
    for row, expected in zip(rows, together, strict=True):
        alone = predictor.predict([row])[0]
        assert alone.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    rows[1]["film"] = "nowhere.mp4"
    assert "missing file" in predictor.predict(rows)[1].error


def test_readers_make_what_encoders_take(config: Config, clips):
    readers = build_readers(config.inputs)
    rows = [open_table(clips / "test.csv")[index] for index in range(3)]
    audio = readers["audio"].collate([readers["audio"].read(row["sound"], clips) for row in rows])
    assert set(audio) == {"input_values", "attention_mask"}
    assert len(set(audio["attention_mask"].sum(dim=1).tolist())) == 3
    video = readers["video"].collate([readers["video"].read(row["film"], clips) for row in rows])
    assert video["pixel_values"].shape == (3, 8, 3, 16, 16)
    assert video["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("architecture", "name", "rate"),
    [
        ({"model_type": "whisper", "num_mel_bins": 80, "max_source_positions": 100}, "input_features", 16000),
        (
            {"model_type": "audio-spectrogram-transformer", "num_mel_bins": 32, "max_length": 64},
            "input_values",
            16000,
        ),
        ({"model_type": "cnn14"}, "input_values", 32000),
        ({"model_type": "wav2vec2"}, "input_values", 16000),
    ],
)
def test_audio_is_prepared_as_its_encoder_needs(config: Config, clips, architecture, name, rate):
    config.inputs["audio"].encoder.architecture = architecture
    reader = build_readers({"audio": config.inputs["audio"]})["audio"]
    assert reader.rate == rate
    batch = reader.collate([reader.read(f"test_{number}.wav", clips) for number in range(2)])
    expected = {
        "whisper": (2, 80, 200),
        "audio-spectrogram-transformer": (2, 64, 32),
        # The first models' group norm sees padding, so there is a fixed length and no mask.
        "wav2vec2": (2, 16000 * 10),
    }
    if architecture["model_type"] in expected:
        assert tuple(batch[name].shape) == expected[architecture["model_type"]]
    else:
        assert batch["attention_mask"].shape == batch[name].shape


def test_columns_of_sound_and_film_are_guessed(clips):
    kinds = guess_columns(open_table(clips / "train.csv"))
    assert kinds == {"sound": "audio", "film": "video", "words": "text", "label": "text"}
