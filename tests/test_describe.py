"""What `mope data describe` says, against counts made by hand."""

import json

import numpy
import pytest
import yaml
from PIL import Image

from mope.cli import main
from mope.config import Config
from mope.data.describe import contact_sheet, describe
from mope.data.table import open_table


@pytest.fixture
def two(tmp_path):
    """Two splits that share one picture under two names and spellings of one sentence."""
    for name, shade in (("a", 10), ("b", 90), ("c", 10), ("d", 200)):
        Image.new("RGB", (8 + shade // 10, 6), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    Image.new("RGB", (9, 6), (10, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 6), (10, 0, 0)).save(tmp_path / "c.png")
    splits = {
        "train": [("a.png", "One two.", "x"), ("b.png", "", "x"), ("none.png", "three", "y")],
        "test": [("c.png", "one  TWO.", "y"), ("d.png", "four five six", "y")],
    }
    tables = {}
    for split, rows in splits.items():
        lines = [json.dumps(dict(zip(("image", "text", "label"), row, strict=True))) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        tables[split] = open_table(tmp_path / f"{split}.jsonl")
    return tables


def test_counts_sizes_gaps_and_duplicates(two):
    found = describe(two, {"image": "image", "text": "text"}, "label")
    train = found["splits"]["train"]
    assert train["rows"] == 3
    assert train["labels"] == {"x": 2, "y": 1}
    image, text = train["columns"]["image"], train["columns"]["text"]
    assert (image["missing"], image["broken"], image["different"]) == (0, 1, 2)
    assert image["sizes"]["width"] == {"least": 9, "median": 13, "most": 17}
    assert (text["missing"], text["broken"]) == (1, 0)
    assert text["sizes"]["words"] == {"least": 1, "median": 1.5, "most": 2}
    shared = {entry["column"]: entry["shared"] for entry in found["duplicates"]}
    assert shared == {"image": 1, "text": 1, "whole row": 1}
    assert found["duplicates"][0]["splits"] == ["train", "test"]


def test_a_contact_sheet_shows_the_pictures_that_can_be_read(two):
    sheet, places = contact_sheet(two["train"], "image", "image")
    assert places == [0, 1]
    assert numpy.asarray(sheet)[3, 3].tolist() == [10, 0, 0]


def test_the_report_is_one_page(config: Config, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(config.dump())
    assert main(["data", "describe", str(tmp_path / "base.yaml"), "--out", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert "48 rows, 3 labels" in said
    assert "train and test share" in said
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg;base64") == 3
    assert "http" not in page.replace("https://", "http")
    table = str(config.data.train)
    assert main(["data", "describe", table, "--image", "picture", "--label", "colour", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["columns"]["picture"]["missing"] == 0
    for arguments, reason in (
        ([table, "--out", "r.pdf"], "name an .html file"),
        ([table, "--image", "nothing"], "has no column 'nothing'"),
    ):
        assert main(["data", "describe", *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_several_labels_of_a_cell_are_counted_each(config: Config, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("question,colours\na,red; blue\nb,blue\nc,\n")
    settings = {"task": "multilabel", "data.label": "colours", "data.separator": ";"}
    settings |= {"data.train": str(tmp_path / "t.csv"), "data.validation": None, "data.test": None}
    content = config.with_settings(settings).model_dump()
    content["fusion"] = {"method": "unimodal", "main": "text"}
    del content["inputs"]["image"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content))
    assert main(["data", "describe", str(tmp_path / "base.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["labels"] == {"blue": 2, "red": 1}


def test_pictures_need_not_be_square(config: Config, tables):
    from mope.data.readers import build_readers
    from mope.errors import UserError

    wide = config.with_settings({"inputs.image.size": [14, 56]})
    reader = build_readers(wide.inputs)["image"]
    sample = reader.sample("train_0.png", tables)
    assert sample.shape == (3, 14, 56)
    assert reader.blank().shape == (3, 14, 56)
    assert Config.parse(yaml.safe_load(wide.dump())) == wide
    with pytest.raises(UserError, match="resize takes a square size"):
        wide.with_settings({"inputs.image.resize": 64})
