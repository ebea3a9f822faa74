"""Tables, cells and what is wrong with them."""

import json
import shutil
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from datasets import Dataset
from datasets.features import Features, Value
from datasets.features import Image as ImageFeature
from PIL import Image

from mope.config import Config, InputConfig
from mope.data import readers as readers_module
from mope.data.check import find_problems, guess_columns, usable
from mope.data.dataset import RowDataset, collate
from mope.data.readers import build_readers
from mope.data.splits import label_names, open_splits
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.audio import reduce_noise
from mope.media.cells import BadCell
from mope.media.images import open_image
from mope.media.texts import open_text
from mope.model import FusionModel
from mope.tasks import Classification
from mope.training import train


def picture(file: Path, mode: str = "RGB", size=(8, 6), **options) -> Path:
    rng = numpy.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=numpy.uint8)).convert(mode).save(
        file, **options
    )
    return file


ROWS = [
    {"text": "a, b", "label": "1"},
    {"text": 'say "hi"\nthere', "label": "002"},
    {"text": "NA", "label": ""},
]


def test_every_format_reads_the_same_rows(tmp_path):
    frame = Dataset.from_list(ROWS)
    frame.to_csv(str(tmp_path / "t.csv"))
    frame.to_parquet(str(tmp_path / "t.parquet"))
    frame.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    for source in (
        tmp_path / "t.csv",
        tmp_path / "t.parquet",
        tmp_path / "saved",
        tmp_path / "t.jsonl",
        frame,
    ):
        table = open_table(source)
        assert [table[i] for i in range(len(table))] == ROWS
        assert list(table) == ROWS
        assert list(table.numbers) == [1, 2, 3]


def test_a_csv_cell_is_text_as_it_stands(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufefftext,label\nnull,007\n1e3,NaN\n".encode())
    assert open_table(tmp_path / "t.csv").column("text") == ["null", "1e3"]
    assert open_table(tmp_path / "t.csv").column("label") == ["007", "NaN"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "isn't a CSV file"),
        ("t.csv", b"a,b\n1,2,3\n4,5,6\n", "more cells than the header"),
        ("t.csv", b"a,b\n1,2\n4,5,6\n", "line 3: 3 cells, more cells than the header"),
        ("t.csv", b"a\n\xff\xfe\n", "t.csv, line 2: not UTF-8"),
        ("t.csv", b"a,b\n", "has no rows"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: a row must be an object"),
        ("t.parquet", b"not parquet", "isn't a Parquet file"),
        ("t.xlsx", b"", "no table this library reads"),
    ],
)
def test_a_broken_table_gets_a_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_table(tmp_path / name)


def test_missing_tables_and_columns_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no table"):
        open_table(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no saved dataset"):
        open_table(tmp_path / "empty")
    with pytest.raises(UserError, match="no column 'photo': it has text, label"):
        open_table(Dataset.from_list(ROWS)).column("photo")


def test_jsonl_of_mixed_types_is_text_and_missing_keys_are_null(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": "x"}\n{"a": "two"}\n{"a": true, "b": null}\n')
    table = open_table(tmp_path / "t.jsonl")
    assert table.column("a") == ["1", "two", "true"]
    assert table.column("b") == ["x", None, None]
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": {"b": 2}}\n')
    with pytest.raises(UserError, match="row 2: 'a' is a dict"):
        open_table(tmp_path / "t.jsonl")


def bomb(file: Path) -> None:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


def test_bad_images_are_said_to_be_what_they_are(tmp_path):
    picture(tmp_path / "good.png")
    data = picture(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    bomb(tmp_path / "bomb.png")
    Image.new("1", (9000, 8000)).save(tmp_path / "wide.png")
    assert open_image("good.png", tmp_path).size == (8, 6)
    for cell, reason in {
        "none.png": "missing file none.png",
        "cut.jpg": "broken image: .*truncated",
        "empty.png": "broken image: the file is empty",
        "text.png": "wrong type: not an image",
        "bomb.png": "huge image: at most 64,000,000 pixels",
        "wide.png": "huge image: 9000 x 8000 pixels",
        "": "the cell is empty",
    }.items():
        with pytest.raises(BadCell, match=reason):
            open_image(cell, tmp_path)
    for cell, reason in (
        (None, "empty"),
        (7, "wrong type: int"),
        (b"", "empty"),
        ({"bytes": None, "path": None}, "empty"),
    ):
        with pytest.raises(BadCell, match=reason):
            open_image(cell, tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "I;16", "1", "P", "LA", "RGBA"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    source = (
        Image.new("RGBA", (4, 4), (200, 10, 10, 0))
        if mode in ("RGBA", "LA")
        else Image.new("RGB", (4, 4), "red")
    )
    source = source.convert("L").convert("I;16") if mode == "I;16" else source.convert(mode)
    file = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    source.save(file)
    image = open_image(file.name, tmp_path)
    assert image.mode == "RGB"
    if mode in ("RGBA", "LA"):
        assert image.getpixel((0, 0)) == (255, 255, 255)  # transparent is white


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", exif=exif)
    assert open_image("turned.jpg", tmp_path).size == (6, 8)


def test_texts():
    assert open_text(" a ", Path()) == " a "
    assert [open_text(cell, Path()) for cell in (3.5, 3.0, True)] == ["3.5", "3", "true"]  # as a CSV file's
    for cell, reason in ((None, "empty text"), ("  ", "empty text"), ([3.5], "wrong type: list")):
        with pytest.raises(BadCell, match=reason):
            open_text(cell, Path())


def test_problems_name_row_column_and_reason(tmp_path):
    picture(tmp_path / "a.png")
    lines = ["photo,title,kind", "a.png,shoe,x", "b.png,,x", "a.png,hat,q", "a.png,hat,"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = open_table(tmp_path / "t.csv")
    found = find_problems(
        table, {"photo": "image", "title": "text"}, "kind", Classification(["x", "y"]).encode
    )
    assert [(p.row, p.column) for p in found] == [(2, "photo"), (2, "title"), (3, "kind"), (4, "kind")]
    assert str(found[2]) == "row 3, column 'kind': unknown label 'q' (known: x, y)"
    with pytest.raises(
        UserError, match="3 of 4 rows can't be used, such as row 2, column 'photo': missing file"
    ):
        usable(table, found, "refuse")
    assert usable(table, found, "skip").numbers == [1]
    with pytest.raises(UserError, match="none of its 1 rows"):
        usable(table.select([1]), found, "skip")
    with pytest.raises(UserError, match="no column 'sound'"):
        find_problems(table, {"sound": "text"})


def test_columns_are_recognised(tmp_path):
    rows = [
        {"photo": "a.JPG", "title": "b", "data": b"x", "number": 3},
        {"photo": "c.png", "title": "", "data": b"", "number": 4},
    ]
    assert guess_columns(open_table(Dataset.from_list(rows))) == {
        "photo": "image",
        "title": "text",
        "data": "image",
    }


def test_embedded_images_are_read_undecoded(tmp_path):
    file = picture(tmp_path / "a.png")
    features = Features({"image": ImageFeature(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [str(file)], "text": ["x"]}, features=features)
    assert open_image(open_table(rows)[0]["image"], Path()).size == (8, 6)
    embedded = Dataset.from_list([{"image": {"bytes": file.read_bytes(), "path": None}}])
    embedded.to_parquet(str(tmp_path / "t.parquet"))
    assert open_image(open_table(tmp_path / "t.parquet")[0]["image"], Path("/nowhere")).size == (8, 6)


def test_splits_by_column_and_by_file(config, tables, tmp_path):
    assert {split: len(table) for split, table in open_splits(config).items()} == {
        "train": 48,
        "validation": 16,
        "test": 20,
    }
    lines = ["question,colour,part", "a,x,train", "b,y,test", "c,x,train"]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    config.data.train, config.data.split_column = str(tmp_path / "all.csv"), "part"
    with pytest.raises(UserError, match="name no other table"):
        open_splits(config)
    config.data.validation = config.data.test = None
    found = open_splits(config)
    assert {split: table.numbers for split, table in found.items()} == {"train": [1, 3], "test": [2]}
    (tmp_path / "all.csv").write_text("\n".join([*lines, "d,y,dev"]))
    with pytest.raises(UserError, match="row 4: the column 'part' says 'dev'"):
        open_splits(config)


def test_label_names_are_kept_and_sorted(config, tables):
    train = open_table(tables / "train.csv")
    assert label_names(config, train) == ["blue", "green", "red"]
    numbers = open_table(Dataset.from_list([{"colour": value} for value in ("10", "9", "1")]))
    assert label_names(config, numbers) == ["1", "9", "10"]
    floats = open_table(Dataset.from_list([{"colour": value} for value in (1.0, 0.0)]))
    assert label_names(config, floats) == ["0", "1"]
    config.data.labels = ["red", "blue"]
    assert label_names(config, train) == ["red", "blue"]
    config.data.labels = None
    with pytest.raises(UserError, match="has 1 labels; two are the least"):
        label_names(config, open_table(Dataset.from_list([{"colour": "x"}])))
    many = Config.model_validate({**config.model_dump(), "task": "multilabel"})
    many.data.label = "colours"
    assert label_names(many, train) == ["blue", "green", "red"]


def test_batches_are_what_the_encoders_take(config, tables, weights):
    readers = build_readers(config.inputs)
    task = Classification(["blue", "green", "red"])
    rows = RowDataset(open_table(tables / "train.csv"), readers, task, "colour")
    batch = collate([rows[0], rows[1]], readers, task)
    assert batch["image"]["pixel_values"].shape == (2, 3, 28, 28)
    pixels = torch.from_numpy(numpy.array(Image.open(tables / "train_0.png"))).permute(2, 0, 1)
    assert torch.equal(batch["image"]["pixel_values"][0], pixels)
    assert batch["text"]["input_ids"].shape == batch["text"]["attention_mask"].shape
    assert batch["labels"].tolist() == [task.encode(rows.table[i]["colour"]) for i in range(2)]


def test_resize_and_crop_and_augment(weights, tables):
    settings = {
        "kind": "image",
        "column": "picture",
        "encoder": {"weights": weights["image"]},
        "size": 14,
        "resize": 28,
    }
    plain = build_readers({"image": InputConfig.model_validate(settings)})["image"]
    whole = open_image("train_0.png", tables)
    expected = torch.from_numpy(numpy.array(whole.crop((7, 7, 21, 21)))).permute(2, 0, 1)
    assert torch.equal(plain.read("train_0.png", tables), expected)
    assert torch.equal(plain.read("train_0.png", tables, train=True), expected)
    augmented = build_readers({"image": InputConfig.model_validate({**settings, "augment": "randaugment"})})[
        "image"
    ]
    assert torch.equal(augmented.read("train_0.png", tables), expected)
    assert any(
        not torch.equal(augmented.read("train_0.png", tables, train=True), expected) for _ in range(10)
    )


def test_texts_longer_than_the_encoder_are_refused_early(weights):
    settings = {"kind": "text", "column": "q", "encoder": {"weights": weights["text"]}, "max_length": 64}
    with pytest.raises(UserError, match="has max_length 64; its encoder takes 32"):
        build_readers({"text": InputConfig.model_validate(settings)})


def test_the_model_norms_pictures_as_its_encoder_was_trained(config, tables):
    model = FusionModel.build(config, ["blue", "green", "red"]).eval()
    rows = RowDataset(open_table(tables / "train.csv"), build_readers(config.inputs))
    batch = collate([rows[0], rows[1]], rows.readers, None)
    floats = (batch["image"]["pixel_values"] / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = model(**{**batch, "image": {"pixel_values": floats}}).logits
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)


def test_pictures_are_kept_on_disk(config, tables, tmp_path, monkeypatch):
    monkeypatch.setenv("MOPE_CACHE", str(tmp_path))
    plain = build_readers(config.inputs)["image"]
    cached = build_readers(config.with_settings({"inputs.image.cache": True}).inputs)["image"]
    expected = plain.sample("train_0.png", tables)
    assert torch.equal(cached.sample("train_0.png", tables), expected)
    opened = []
    monkeypatch.setattr(readers_module, "open_pixels", lambda *a: opened.append(a))
    for _ in range(2):
        assert torch.equal(cached.sample("train_0.png", tables), expected)
    assert not opened
    (tmp_path / "other").mkdir()
    shutil.copy(tables / "train_1.png", tmp_path / "other" / "train_0.png")
    monkeypatch.undo()
    changed = cached.sample("train_0.png", tmp_path / "other")
    assert torch.equal(changed, plain.sample("train_1.png", tables))
    content = (tables / "train_2.png").read_bytes()
    for _ in range(2):
        assert torch.equal(cached.sample(content, tables), plain.sample("train_2.png", tables))
    with pytest.raises(UserError, match="cache is for images without augmentation"):
        config.with_settings({"inputs.image.cache": True, "inputs.image.augment": "randaugment"})


def test_texts_that_are_cut_off_are_counted(config, tables):
    reader = build_readers(config.with_settings({"inputs.text.max_length": 6}).inputs)["text"]
    assert reader.count_cut(["what is ?", "what is on the left side ?", "what is left ?"]) == 1
    lines = []
    train(config.with_settings({"inputs.text.max_length": 6, "training.epochs": 1}), report=lines.append)
    assert any("32 of 48 texts of 'text' are longer than 6 tokens" in line for line in lines)


@pytest.mark.slow
def test_noise_reduction_keeps_what_varies_and_mutes_what_repeats():
    rate, rng = 8000, numpy.random.default_rng(0)
    hum = 0.3 * numpy.sin(2 * numpy.pi * 100 * numpy.arange(8 * rate) / rate)
    voice = numpy.zeros(8 * rate)
    voice[3 * rate : 4 * rate] = rng.normal(0, 0.3, rate)
    cleaned = reduce_noise((hum + voice).astype(numpy.float32), rate)
    assert len(cleaned) == 8 * rate
    assert cleaned[:rate].std() < 0.2 * hum[:rate].std()
    assert cleaned[3 * rate : 4 * rate].std() > 0.5 * voice[3 * rate : 4 * rate].std()
    short = hum[:rate].astype(numpy.float32)
    assert reduce_noise(short, rate) is short
