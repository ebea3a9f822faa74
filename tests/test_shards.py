"""WebDataset shards as tables: what a member is, what a shard may not hold, how files are named."""

import json
import pickle
from pathlib import Path

import pytest
from shard_tester import write_tar

from mope.data.report import check_table
from mope.data.shards import KEY, find_files, read_shard
from mope.data.table import open_table
from mope.errors import UserError

pytest_plugins = ["shard_fixtures"]


def test_shards_are_a_table_with_a_column_per_extension(shards):
    table = open_table(str(shards / "train-{000..002}.tar"))
    assert len(table) == 48
    assert table.columns == [KEY, "png", "txt", "colour", "number"]
    assert table[1][KEY] == "0003"
    assert table[1]["number"] == 3
    assert table[1]["txt"] == "what is right ?" or table[1]["txt"] == "what is left ?"
    assert table[1]["png"].startswith(b"\x89PNG")
    assert table.name == str(shards / "train-{000..002}.tar")
    assert check_table(str(shards / "test-000.tar"), {}).problems == []
    assert check_table(str(shards / "test-000.tar"), {}).columns == {
        "png": "image",
        "txt": "text",
        "colour": "text",
    }


def test_what_a_member_is_follows_from_its_extension(tmp_path):
    members = {
        "./a/b.c/0001.JPG": b"\xff\xd8",
        "./a/b.c/0001.left.PNG": b"png",
        "./a/b.c/0001.cls": " 3\n",
        "README": "no sample",
        "a/.hidden.txt": "no sample",
        "../../evil.txt": "a name is no path",
        "/tmp/evil.txt": "nor is this",
        "0002.link": None,
        "0003.wav": b"RIFF",
        "0003.json": json.dumps({"wave": "x", "list": [1, 2]}),
    }
    samples = [
        sample.read(["jpg", "left.png", "cls", "txt", "wav"])
        for sample in read_shard(write_tar(tmp_path / "a.tar", members))
    ]
    assert samples == [
        {KEY: "./a/b.c/0001", "jpg": b"\xff\xd8", "left.png": b"png", "cls": "3"},
        {KEY: "../../evil", "txt": "a name is no path"},
        {KEY: "/tmp/evil", "txt": "nor is this"},
        {KEY: "0003", "wav": b"RIFF", "wave": "x", "list": [1, 2]},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    assert not Path("/tmp/evil.txt").exists()
    assert "wav" not in next(s for s in read_shard(tmp_path / "a.tar") if s.key == "0003").read([])


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"1.txt": b"\xff\xfe\xfa"}, r"1\.txt isn't UTF-8"),
        ({"1.json": "{"}, r"1\.json: not JSON"),
        ({"1.json": "[" * 100_000}, r"1\.json: nested too deeply"),
        ({"1.json": "[1]"}, r"1\.json must be an object"),
        ({"1.txt": "a", "1.json": '{"txt": "b"}'}, r"two values of 'txt', the second in 1\.json"),
        ({"1.txt": "a", "1.TXT": "b"}, r"has two members 1\.TXT: rename one"),
        ({"1.txt": "a", "1.pickle": pickle.dumps(print)}, r"has a pickled member, 1\.pickle: .*run code"),
        ({"1.meta.pyd": b""}, "has a pickled member"),
        ({"1.pth": b""}, "has a pickled member"),
        ({}, "has no rows"),
    ],
)
def test_what_a_shard_may_not_hold(tmp_path, members, sentence):
    with pytest.raises(UserError, match=sentence):
        open_table(write_tar(tmp_path / "a.tar", members))


def test_a_broken_shard_is_refused(tmp_path, shards):
    content = (shards / "test-000.tar").read_bytes()
    for name, broken in {
        "none": b"no tar at all" * 100,
        "data": content[: 512 + 10],
        "header": content[: len(content) // 2 // 512 * 512 - 512] + b"x" * 2048,
        "gz": b"\x1f\x8b" + content[:1000],
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(broken)
        with pytest.raises(UserError, match=f"{name}.tar isn't a whole tar file"):
            list(read_shard(tmp_path / f"{name}.tar"))


def test_a_member_that_is_missing_or_broken_is_a_bad_row(tmp_path, shards):
    first = next(read_shard(shards / "test-000.tar")).read()
    members = {
        "1.png": first["png"],
        "1.txt": "what ?",
        "2.txt": "without a picture",
        "3.png": first["png"][:60],
        "3.txt": "broken",
        "4.png": first["png"],
    }
    report = check_table(write_tar(tmp_path / "a.tar", members), {"png": "image", "txt": "text"})
    assert [(p.row, p.column, p.reason.split(":")[0]) for p in report.problems] == [
        (2, "png", "no image"),
        (3, "png", "broken image"),
        (4, "txt", "empty text"),
    ]


def test_braces_patterns_and_folders_name_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar", "b.txt", "{odd}.tar"):
        Path(name).touch()
    names = [file.name for file in find_files("a-{08..10}.tar")]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [str(file) for file in find_files("{a-08,b}.tar")] == ["a-08.tar", "b.tar"]
    assert [str(file) for file in find_files("a-*.tar")] == names
    assert [file.name for file in find_files(".")] == [*names, "b.tar", "{odd}.tar"]
    assert [str(file) for file in find_files("{odd}.tar")] == ["{odd}.tar"]
    assert [str(file) for file in find_files("{a..b}.tar")] == ["{a..b}.tar"]
    with pytest.raises(UserError, match=r"There is no table a-11\.tar"):
        open_table("a-{08..11}.tar")
    for pattern, sentence in {
        "c-*.tar": "There is no file like",
        "a-{0..999999999}.tar": "more than 100,000",
        "{0..999}{0..999}.tar": "more than 100,000",
        "a-{3..1}.tar": "the first number is above",
        "{b.txt,b.tar}": "several files, which are a table only if",
    }.items():
        with pytest.raises(UserError, match=sentence):
            open_table(pattern)
