"""Files with bytes changed at random: what can't be read any more is told, and nothing else comes of it."""

import json
import random
import warnings
from pathlib import Path

import pytest
from broken_cells import NOISE, film, picture, sound
from broken_tables import GOOD, LINE, TAR, parquet, saved

from mope.data.stream import Stream
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.audio import open_audio, peek_audio
from mope.media.cells import BadCell, UntrustedFolder
from mope.media.images import open_image, open_pixels, picture_size
from mope.media.masks import open_mask
from mope.media.video import open_video, peek_video

TIMES = 25


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes are others, mostly near the start, where headers are; sometimes the end is lost."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 2, 4, 16])):
        within = min(len(found), 200) if rng.random() < 0.5 else len(found)
        found[rng.randrange(within)] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(found[: rng.randrange(1, len(found))] if rng.random() < 0.2 else found)


MEDIA = {
    **{
        kind: (picture(kind), (open_image, open_pixels, picture_size))
        for kind in ("PNG", "JPEG", "GIF", "BMP")
    },
    **{kind: (picture(kind), (open_image, open_pixels, picture_size)) for kind in ("TIFF", "WEBP", "PPM")},
    "packed TIFF": (picture("TIFF", NOISE, compression="tiff_deflate"), (open_image, picture_size)),
    "mask": (picture("PNG", NOISE.convert("L")), (open_mask,)),
    **{
        kind: (sound(kind=kind), (open_audio, peek_audio))
        for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU", "MP3")
    },
    "MP4": (film(8), (open_video, peek_video)),
}


@pytest.mark.parametrize("kind", MEDIA)
def test_media(kind, capfd):
    content, functions = MEDIA[kind]
    rng, said = random.Random(0), []
    for _ in range(TIMES):
        cell = damaged(content, rng)
        for function in functions:
            for folder in (Path(), UntrustedFolder()):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        function(cell, folder)
                    except BadCell as error:
                        said.append(str(error))
    assert all(len(words) <= 200 for words in said)
    assert "Traceback" not in capfd.readouterr().err


TABLES = {"t.csv": GOOD * 9, "t.jsonl": LINE * 9, "t.parquet": parquet("text", "label"), "t.tar": TAR}


def read(file: Path) -> None:
    table = open_table(file)
    for place in range(len(table)):
        table[place]


def stream(file: Path) -> None:
    for item in Stream(file).items():
        item.read(None)


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    rng = random.Random(0)
    for number in range(2 * TIMES):
        file = tmp_path / f"{number}{name}"
        file.write_bytes(damaged(TABLES[name], rng))
        for function in (read, stream):
            try:
                function(file)
            except (UserError, BadCell) as error:
                said = str(error).replace(str(tmp_path), "")
                assert len(said) <= 300
                assert said.isprintable()


@pytest.mark.parametrize("name", ["*.arrow", "state.json", "dataset_info.json"])
def test_saved_datasets(tmp_path, name):
    """A cell of a mapped file that says it lies elsewhere would end the process when it is read."""
    rng, said = random.Random(0), []
    content = next(saved(tmp_path).glob(name)).read_bytes()
    for number in range(2 * TIMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = next(saved(folder).glob(name))
        file.unlink()  # which another may have mapped
        file.write_bytes(damaged(content, rng))
        for function in (read, stream):
            try:
                function(folder / "t")
            except UserError as error:
                said.append(str(error).replace(str(folder), ""))
    assert all(len(words) <= 300 for words in said)


def test_a_saved_dataset_in_an_order_of_its_own(tmp_path):
    from datasets import Dataset

    rows = Dataset.from_list([{"text": str(n)} for n in range(9)])
    rows.select([3, 1, 4]).save_to_disk(str(tmp_path / "t"))
    assert open_table(tmp_path / "t").column("text") == ["3", "1", "4"]
    state = json.loads((tmp_path / "t" / "state.json").read_text())
    assert state["_data_files"]
