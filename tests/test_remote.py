"""Rows from anywhere: storages, the web and archives."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from remote_tester import png
from run_tester import quiet, tiny_run
from serve_tester import talk

from mope.bulk import evaluate
from mope.cli import main
from mope.config import Config
from mope.data.stream import Stream
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cells import BadCell, home_of
from mope.media.images import open_image
from mope.predictor import Predictor
from mope.remote import RemotePath, is_url, matching, path_of, rebased
from mope.remote.sizes import Bound
from mope.training import train

pytest_plugins = ["remote_fixtures", "serve_fixtures", "shard_fixtures"]


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def read(url: str) -> list[dict]:
    return list(open_table(url))


# What a URL names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/a.csv", True),
        ("zip://a.csv::b.zip", True),
        ("HTTPS://host/a.csv", True),
        ("a.csv", False),
        ("./a::b.csv", False),
        ("C:/a.csv", False),
        ("hub:owner/name", False),
        ("a picture://", False),
    ],
)
def test_a_url_has_a_scheme(name, expected):
    assert is_url(name) == expected


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("s3://b/d", "x.png", "s3://b/d/x.png"),
        ("s3://b/d", "../e/./x.png", "s3://b/e/x.png"),
        ("s3://b/d", "../../../x.png", "s3://b/x.png"),
        ("s3://b/d", "s3://c/x.png", "s3://c/x.png"),
        ("s3://b/d", "/x.png", "/x.png"),
        ("s3://b/d", "file:///x.png", "/x.png"),
        ("https://h/d", "x.png", "https://h/d/x.png"),
        ("zip://d::s3://b/a.zip", "x.png", "zip://d/x.png::s3://b/a.zip"),
        ("zip://::s3://b/a.zip", "x.png", "zip://x.png::s3://b/a.zip"),
        ("zip://d::s3://b/a.zip", "../../../x.png", "zip://x.png::s3://b/a.zip"),
    ],
)
def test_a_path_is_relative_to_a_folder_elsewhere(folder, name, expected):
    assert str(RemotePath(folder) / name) == expected


def test_a_path_has_a_name_an_ending_and_a_folder():
    path = path_of("https://host/rows/a.csv?token=a/b.c")
    assert isinstance(path, RemotePath)
    assert (path.name, path.suffix, str(path.parent)) == ("a.csv", ".csv", "https://host/rows")
    path = RemotePath("s3://b") / "d/x.png"
    assert (path.name, path.suffix, str(path.parent)) == ("x.png", ".png", "s3://b/d")
    path.bound = Bound(1000, "a flag")
    assert pickle.loads(pickle.dumps(path)) == path == copy.deepcopy(path)
    assert pickle.loads(pickle.dumps(path)).bound == copy.deepcopy(path).bound == path.bound
    assert path_of("file:///a/b.csv") == Path("/a/b.csv")


def test_settings_keep_urls_and_find_local_archives(tmp_path, weights, tables, monkeypatch):
    content = tiny_run(weights, tables, tmp_path / "run")
    urls = {
        "train": "s3://rows/train-{000..002}.tar",
        "validation": "zip://a.csv::rows.zip",
        "test": "zip://a.csv::https://host/rows.zip",
        "folder": "hf://datasets/owner/name@main/pictures",
    }
    content["data"] |= urls
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    config = Config.load("configs/tiny.yaml")
    found = {place: getattr(config.data, place) for place in urls}
    assert found == {**urls, "validation": "zip://a.csv::configs/rows.zip"}
    assert rebased(urls["test"], str.upper) == urls["test"]
    with pytest.raises(UserError, match="output is a folder on this machine"):
        config.with_settings({"output": "s3://rows/run"})


# Tables


def test_tables_of_every_kind_are_read_from_a_storage(bucket, tmp_path):
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]
    bucket.pipe("rows/kinds/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    bucket.put_file(str(tmp_path / "a.parquet"), "rows/kinds/a.parquet")
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    bucket.put(str(tmp_path / "saved"), "rows/kinds/saved", recursive=True)
    bucket.pipe("rows/kinds/a.csv", b"text,n\none,1\ntwo,2\n")
    assert read("s3://rows/kinds/a.jsonl") == rows == read("s3://rows/kinds/a.parquet")
    assert read("s3://rows/kinds/saved") == rows
    assert read("s3://rows/kinds/a.csv") == [{"text": "one", "n": "1"}, {"text": "two", "n": "2"}]
    table = open_table("s3://rows/kinds/a.csv")
    assert (table.name, str(table.folder)) == ("s3://rows/kinds/a.csv", "s3://rows/kinds")


def test_pictures_of_a_table_are_found_beside_it(bucket, tables):
    table, local = open_table("s3://rows/tiny/test.csv"), open_table(tables / "test.csv")
    assert list(table) == list(local)
    for row in table:
        found, expected = open_image(row["picture"], table.folder), open_image(row["picture"], local.folder)
        assert found.tobytes() == expected.tobytes()


def test_a_local_table_may_name_files_elsewhere(bucket, tables, web, tmp_path):
    web.files["/a.png"] = png("blue")
    assert open_image(f"{web.url}/a.png", Path()).getpixel((0, 0)) == (0, 0, 255)
    table = open_table(tables / "test.csv", folder="s3://rows/tiny")
    assert open_image(table[0]["picture"], table.folder).size == (28, 28)
    with pytest.raises(BadCell, match=r"there is no file http://.*/none.png"):
        open_image(f"{web.url}/none.png", Path())
    with pytest.raises(BadCell, match=r"[Cc]an't read"):
        open_image("\ud800.png", home_of(web.url))
    with pytest.raises(BadCell, match="is a folder"):
        open_image("tiny", home_of("s3://rows"))


def test_check_lists_what_is_broken_or_missing_elsewhere(bucket, capsys):
    bucket.pipe("rows/bad/good.png", png())
    bucket.pipe("rows/bad/broken.png", png()[:60])
    bucket.pipe("rows/bad/a.csv", b"picture,label\ngood.png,a\nbroken.png,b\nnone.png,a\n")
    assert main(["data", "check", "s3://rows/bad/a.csv", "--label", "label", "--json"]) == 2
    (report,) = json.loads(capsys.readouterr().out)
    reasons = {problem["row"]: problem["reason"] for problem in report["problems"]}
    assert set(reasons) == {2, 3}
    assert "broken image" in reasons[2]
    assert reasons[3] == "there is no file s3://rows/bad/none.png"


def test_a_table_and_its_pictures_lie_in_an_archive(bucket, web, tmp_path):
    content = zipped({"in/a.csv": b"picture\nx.png\n", "in/x.png": png("blue"), "b.csv": b"a\n1\n"})
    web.files["/rows.zip"] = content
    (tmp_path / "rows.zip").write_bytes(content)
    bucket.pipe("rows/rows.zip", content)
    for archive in (f"{web.url}/rows.zip", "s3://rows/rows.zip", str(tmp_path / "rows.zip")):
        table = open_table(f"zip://in/a.csv::{archive}")
        assert open_image(table[0]["picture"], table.folder).getpixel((0, 0)) == (0, 0, 255)
        assert read(f"zip://b.csv::{archive}") == [{"a": "1"}]
    assert web.asked["GET /rows.zip"] == 1
    (tmp_path / "rows.zip").write_bytes(zipped({"b.csv": b"a\n2\n"}))
    assert read(f"zip://b.csv::{tmp_path / 'rows.zip'}") == [{"a": "2"}]


def test_shards_are_named_by_patterns(bucket, web, shards):
    for file in shards.glob("train-*.tar"):
        bucket.put_file(str(file), f"rows/shards/{file.name}")
        web.files[f"/{file.name}"] = file.read_bytes()
    expected = read(str(shards / "train-*.tar"))
    braces = "train-{000..002}.tar"
    for source in (
        "s3://rows/shards/train-*.tar",
        f"s3://rows/shards/{braces}",
        "s3://rows/shards",
        f"{web.url}/{braces}",
    ):
        assert read(source) == expected
    with pytest.raises(UserError, match=r"no file like s3://rows/shards/valid\*"):
        read("s3://rows/shards/valid*")


def test_names_are_names_whatever_signs_they_have(bucket, web):
    for name in ("a b#1?%20.png", "a::file:x.png", "ä&=+.png"):
        bucket.pipe(f"rows/odd/{name}", png("blue"))
        web.files[f"/odd/{name}"] = png("blue")
    for name in ("a b#1?%20.png", "a::file:x.png", "ä&=+.png"):
        assert (RemotePath("s3://rows/odd") / name).read_bytes() == png("blue")
    assert (RemotePath(f"{web.url}/odd") / "ä&=+.png").read_bytes() == png("blue")
    assert (RemotePath(f"{web.url}/odd") / "a::file:x.png").read_bytes() == png("blue")
    assert len(matching("s3://rows/odd/*.png")) == 3
    assert all(file.exists() for file in matching("s3://rows/odd/*.png"))


# Somebody else's tables, and requests


@pytest.mark.parametrize("cell", ["{web}/x.png", "FILE:///etc/hostname", "../x.png", "zip://x.png::x.zip"])
def test_an_untrusted_table_names_nothing_elsewhere(cell, web, bucket, tmp_path):
    web.files |= {"/x.png": png(), "/t/a.csv": b"a\n1\n"}
    (tmp_path / "a.csv").write_text("a\n1\n")
    bucket.pipe("rows/t/a.csv", b"a\n1\n")
    cell = cell.format(web=web.url)
    for source in (str(tmp_path / "a.csv"), f"{web.url}/t/a.csv", "s3://rows/t/a.csv"):
        folder = open_table(source, trusted=False).folder
        with pytest.raises(BadCell, match="leaves the table's folder"):
            open_image(cell, folder)
    assert web.asked["GET /x.png"] == web.asked["HEAD /x.png"] == 0
    stream = Stream("s3://rows/t/a.csv", trusted=False)
    with pytest.raises(BadCell, match="leaves the table's folder"):
        open_image(cell, next(stream.items()).folder)


def test_an_untrusted_table_reads_beside_itself(bucket):
    table = open_table("s3://rows/tiny/test.csv", trusted=False)
    assert open_image(table[0]["picture"], table.folder).size == (28, 28)


def test_a_request_fetches_nothing(app, web):
    web.files["/x.png"] = png()
    with talk(app) as client:
        for row in (
            {"image": f"{web.url}/x.png", "text": "what"},
            {"image": {"path": f"{web.url}/x.png"}, "text": "what"},
            {"text": f"{web.url}/x.png", "image": None},
        ):
            client.post("/predict", json={"row": row})
        client.post("/predict", data={"image": f"{web.url}/x.png", "text": "what"})
    assert not web.asked


# Runs


def test_a_run_is_trained_measured_and_asked_from_a_storage(bucket, weights, tables, tmp_path, capsys):
    content = tiny_run(weights, tables, tmp_path / "run", epochs=1)
    content["data"] |= {split: f"s3://rows/tiny/{split}.csv" for split in ("train", "validation", "test")}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["data", "check", str(file)]) == 0
    assert main(["train", str(file), "--quiet"]) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["data"]["train"] == "s3://rows/tiny/train.csv"
    assert evaluate(tmp_path / "run", report=quiet)["rows"] == 20
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(tmp_path / "run"), "s3://rows/tiny/test.csv", "--out", str(out)]) == 0
    said = [json.loads(line) for line in out.read_text().splitlines()]
    expected = Predictor(tmp_path / "run", device="cpu").predict(tables / "test.csv")
    assert [row["label"] for row in said] == [prediction.label for prediction in expected]
    assert main(["predict", str(tmp_path / "run"), str(tables / "test.csv"), "--out", "s3://rows/o.csv"]) == 2
    assert "what is said is written to files of this machine" in capsys.readouterr().err
    pages = str(tmp_path / "pages")
    assert main(["explain", str(tmp_path / "run"), "--rows", "2", "--out", pages]) == 0
    assert list(Path(pages).glob("*.html"))


def test_a_stream_of_shards_is_trained_on_without_holding_them_all(bucket, weights, tables, shards, tmp_path):
    for file in shards.glob("*.tar"):
        bucket.put_file(str(file), f"rows/streamed/{file.name}")

    def trained(base: str, name: str) -> dict:
        content = tiny_run(weights, tables, tmp_path / name, epochs=1)
        content["inputs"]["image"]["column"], content["inputs"]["text"]["column"] = "png", "txt"
        content["data"] |= {
            "train": f"{base}/train-{{000..002}}.tar",
            "validation": f"{base}/validation-*.tar",
            "test": f"{base}/test-000.tar",
            "streaming": True,
            "labels": ["blue", "green", "red"],
            "train_rows": 48,
            "workers": 2,
        }
        return train(Config.parse(content), report=quiet)

    found, expected = trained("s3://rows/streamed", "far"), trained(str(shards), "near")
    assert found["history"][0]["train_task_loss"] == expected["history"][0]["train_task_loss"]


def test_fit_takes_a_table_from_a_storage(bucket, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "s3://rows/tiny/train.csv", "--label", "colour", "--write", "plan.yaml"]
    words += ["--kind", "colours=left out", "--kind", "number=left out"]
    words += ["--encoder", f"picture={weights['image']}", "--encoder", f"question={weights['text']}"]
    assert main(words) == 0
    assert yaml.safe_load(Path("plan.yaml").read_text())["data"]["train"] == "s3://rows/tiny/train.csv"
