"""Scenes with a voice: sound, picture and text, of which a row needs all three."""

import csv
import json
import random
from pathlib import Path

import numpy
import pytest

from mope.cli import main
from mope.config import Config
from mope.predictor import Predictor
from mope.scenes.compose import COLOURS
from mope.scenes.glyphs import kinds
from mope.scenes.spoken import QUESTIONS, WORDS, SpokenSettings, bounds, build_spoken
from mope.scenes.voice import RATE, VOWELS, save_wave, speak
from mope.scenes.words import place_name
from mope.training import train

SMALL = SpokenSettings(train=6, validation=2, test=3, size=32)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("spoken") / "set"
    build_spoken(folder, SMALL)
    return folder


def read(folder: Path, split: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{split}.csv").open(encoding="utf-8")))


def test_every_answer_is_what_the_voice_means_and_the_question_asks(spoken):
    rows = [row for split in ("train", "validation", "test") for row in read(spoken, split)]
    assert len(rows) == 2 * (6 + 2 + 3)
    places = {place_name(cell, 2): number for number, cell in enumerate(WORDS.values())}
    for row in rows:
        kind, colour = row["shown"].split(" ")[places[row["place"]]].rsplit("/", 1)
        assert row["answer"] == {"thing": kind, "colour": colour}[row["asks"]]
        assert row["question"] in QUESTIONS[row["asks"]]
        assert row["place"] not in row["question"]
        assert (spoken / row["image"]).is_file()
        assert (spoken / row["sound"]).is_file()


def test_the_same_settings_give_the_same_bytes_and_others_are_refused(spoken, tmp_path):
    build_spoken(tmp_path / "again", SMALL)
    for file in sorted(spoken.rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(spoken)).read_bytes()
    assert main(["data", "spoken", str(spoken)]) == 2
    assert main(["data", "spoken", str(tmp_path / "new"), "--kinds", "3"]) == 2
    assert not (tmp_path / "new").exists()


def test_what_is_hidden_bounds_what_can_be_right():
    rows = [
        {
            "asks": "thing",
            "place": "top left",
            "answer": "cat",
            "shown": "cat/red dog/blue car/red fish/grey",
        },
        {
            "asks": "colour",
            "place": "top left",
            "answer": "red",
            "shown": "cat/red dog/blue car/red fish/grey",
        },
        {
            "asks": "thing",
            "place": "top left",
            "answer": "cat",
            "shown": "cat/red dog/blue car/grey fish/green",
        },
        {
            "asks": "thing",
            "place": "top left",
            "answer": "dog",
            "shown": "dog/red cat/blue car/grey fish/green",
        },
    ]
    # Without the sound: one kind of four, but red on two tiles of four.
    assert bounds(rows) == {"sound": (0.25 + 0.5 + 0.25 + 0.25) / 4, "question": 0.5, "picture": 3 / 4}


def test_vowels_differ_where_their_formants_are():
    """For most speakers there is more energy around a vowel's own first two formants."""
    rng, right = random.Random(0), 0
    for vowel in VOWELS:
        for _ in range(10):
            clip = speak(vowel, rng)
            assert clip.dtype == numpy.float32
            assert numpy.abs(clip).max() <= 1
            power = numpy.abs(numpy.fft.rfft(clip)) ** 2
            hertz = numpy.fft.rfftfreq(len(clip), 1 / RATE)

            def near(name, hertz=hertz, power=power):
                bands = [(hertz > 0.85 * f) & (hertz < 1.25 * f) for f in VOWELS[name][:2]]
                return sum(numpy.log(power[band].mean()) for band in bands)

            right += max(VOWELS, key=near) == vowel
    assert right >= 28  # of 40; 10 by chance


def test_a_wave_is_read_as_it_was_written(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    clip = speak("ah", random.Random(1))
    save_wave(clip, tmp_path / "a.wav")
    found, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == RATE
    numpy.testing.assert_allclose(found, clip, atol=1e-4)


def test_the_command_says_what_each_input_is_worth(spoken, tmp_path, capsys):
    arguments = ["data", "spoken", str(tmp_path / "s"), "--train", "2", "--validation", "1", "--test", "2"]
    assert main([*arguments, "--size", "32"]) == 0
    assert "without the sound" in capsys.readouterr().out
    assert main([*arguments, "--size", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"]["rows"] == 4


def test_three_inputs_train_over_tiny_encoders(spoken, config, tmp_path):
    content = config.model_dump()
    content["inputs"]["image"]["column"], content["inputs"]["text"]["column"] = "image", "question"
    content["inputs"]["audio"] = {
        "kind": "audio",
        "column": "sound",
        "seconds": 0.5,
        "encoder": {
            "tuning": "full",
            "architecture": {"model_type": "cnn14", "channels": [4] * 6, "embedding_size": 8},
        },
    }
    content["data"] |= {split: str(spoken / f"{split}.csv") for split in ("train", "validation", "test")}
    content["data"] |= {"label": "answer", "labels": [*kinds("easy")[:6], *COLOURS]}
    content["training"] |= {"epochs": 1, "head_start": "random"}
    content["fusion"] |= {"keys": "orthogonal"}
    result = train(Config.parse(content), report=lambda line: None)
    assert 0 <= result["validation"]["accuracy"] <= 1
    assert len(Predictor(content["output"]).predict(read(spoken, "test"), spoken)) == 6
