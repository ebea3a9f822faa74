"""Copies of files elsewhere, and what goes wrong with fetching them."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from remote_tester import png
from torch.utils.data import DataLoader

from mope.cli import main
from mope.data.check import find_problems
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cache import content_key
from mope.media.cells import BadCell
from mope.media.images import open_image
from mope.remote import RemotePath, copies, look_anew

pytest_plugins = ["remote_fixtures", "serve_fixtures", "shard_fixtures"]


def read(url: str) -> list[dict]:
    return list(open_table(url))


# Copies


def test_a_second_reading_fetches_nothing_and_a_changed_file_is_seen(web, cache):
    web.files |= {"/a.csv": b"picture\nx.png\n", "/x.png": png("red")}
    for _ in range(3):
        table = open_table(f"{web.url}/a.csv")
        assert open_image(table[0]["picture"], table.folder).getpixel((0, 0)) == (255, 0, 0)
        open_image(table[0]["picture"], table.folder)
    assert (web.asked["GET /a.csv"], web.asked["GET /x.png"]) == (1, 1)
    assert web.asked["HEAD /x.png"] == 3  # compared once for each opening of the table
    web.files["/x.png"] = png("blue")
    assert open_image("x.png", table.folder).getpixel((0, 0)) == (255, 0, 0)
    before = content_key("x.png", table.folder)
    table = open_table(f"{web.url}/a.csv")
    assert open_image("x.png", table.folder).getpixel((0, 0)) == (0, 0, 255)
    assert content_key("x.png", table.folder) not in (None, before)
    assert web.asked["GET /x.png"] == 2
    web.files["/a.csv"] = b"picture\ny.png\n"
    assert read(f"{web.url}/a.csv") == [{"picture": "y.png"}]


def test_without_a_version_a_copy_is_good_for_one_process(web, cache, monkeypatch):
    web.tags = False
    web.files["/a.csv"] = b"a\n1\n"
    read(f"{web.url}/a.csv")
    assert read(f"{web.url}/a.csv") == [{"a": "1"}]
    assert web.asked["GET /a.csv"] == 1
    monkeypatch.setattr("mope.remote.paths._unknown", "another process")
    web.files["/a.csv"] = b"a\n2\n"
    assert read(f"{web.url}/a.csv") == [{"a": "2"}]


def test_a_file_that_changes_while_it_is_read_is_refused(web, cache):
    web.files["/a.csv"] = b"a\n1\n"
    file = RemotePath(f"{web.url}/a.csv")
    file.local().unlink()
    web.files["/a.csv"] = b"a\n2\n"
    file._found = None
    with pytest.raises(UserError, match="was changed while it was being read"):
        file.read_bytes()


def test_copies_leave_where_they_take_too_much(web, cache, monkeypatch):
    monkeypatch.setenv("MOPE_REMOTE_GB", str(250_000 / 2**30))
    for number in range(6):
        web.files[f"/{number}.bin"] = bytes(100_000)
        file = RemotePath(f"{web.url}/{number}.bin").local()
        os.utime(file, (number, number))
    there = list(copies._root().glob("??/*/*"))
    assert 1 <= len(there) <= 3
    assert RemotePath(f"{web.url}/5.bin").local() in there
    monkeypatch.setenv("MOPE_REMOTE_GB", "much")
    with pytest.raises(UserError, match="MOPE_REMOTE_GB is 'much'"):
        RemotePath(f"{web.url}/0.bin").local()


def _read_one(url: str) -> int:
    return len(RemotePath(url).read_bytes())


def test_processes_fetch_a_file_once(web, cache):
    web.files["/shard.tar"] = bytes(2_000_000)
    look_anew()
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_read_one, [f"{web.url}/shard.tar"] * 4) == [2_000_000] * 4
    assert web.asked["GET /shard.tar"] == 1


def test_the_files_of_many_rows_are_fetched_at_once(web, cache):
    names = [f"{number}.png" for number in range(64)]
    web.files |= {f"/{name}": png() for name in names}
    web.files["/a.csv"] = "\n".join(["picture", *names]).encode()
    web.seconds = 0.05
    table = open_table(f"{web.url}/a.csv")
    began = time.monotonic()
    assert not find_problems(table, {"picture": "image"})
    assert time.monotonic() - began < 64 * 2 * 0.05 / 2  # each is asked for twice
    assert all(web.asked[f"GET /{name}"] == 1 for name in names)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        return open_image(self.table[index]["picture"], self.table.folder).size[0]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_is_elsewhere(bucket, method):
    table = open_table("s3://rows/tiny/test.csv")
    loader = DataLoader(Pictures(table), num_workers=2, multiprocessing_context=method)
    assert [int(size) for size in loader] == [28] * len(table)


# What goes wrong


def test_what_fails_twice_is_tried_again(web, cache):
    web.files["/a.csv"] = b"a\n1\n"
    # fsspec asks by GET, too, where a HEAD fails.
    web.fails = {"HEAD /a.csv": [500, 503], "GET /a.csv": [500, 503, 500, "cut"]}
    assert read(f"{web.url}/a.csv") == [{"a": "1"}]
    assert not any(web.fails.values())


def test_what_goes_on_failing_is_told(web, cache, capsys):
    web.files["/a.csv"] = b"a\n1\n"
    web.fails = {"HEAD /a.csv": [503] * 20, "GET /a.csv": [503] * 20}
    assert main(["data", "check", f"{web.url}/a.csv"]) == 2
    said = capsys.readouterr().err
    assert "can't be reached (503" in said
    assert said.count("\n") == 1
    assert web.asked["HEAD /a.csv"] == 4


ERRORS = {
    "s3://rows/tiny/none.csv": "There is no table s3://rows/tiny/none.csv",
    "s3://nowhere/a.csv": "There is no bucket for s3://nowhere/a.csv: check",
    "xyz://a/b.csv": "There is no 'xyz://'",
    "abfs://box/a.csv": "A package for abfs://box/a.csv isn't there",
    "zip://a.csv": "isn't a file in an archive: write zip://FILE::ARCHIVE",
    "s3://rows/a.csv::s3://rows/b": "isn't a file in an archive",
    "zip://none.csv::s3://rows/tiny/test.csv": "Can't read .*File is not a zip file",
    "zip://a.csv::none.zip": "There is no table|There is no file",
    "http://127.0.0.1:9/a.csv": "can't be reached .* check its address and the network",
    "s3://rows/tiny": "is a folder but holds no saved dataset",
}


@pytest.mark.parametrize("url", ERRORS)
def test_errors_are_a_sentence(url, bucket, capsys):
    assert main(["data", "check", url]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=ERRORS[url]):
        open_table(url)


def test_credentials_are_asked_for(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    type(bucket).clear_instance_cache()
    with pytest.raises(UserError, match=r"no credentials for s3://rows/tiny/test\.csv: set AWS_PROFILE"):
        open_table("s3://rows/tiny/test.csv")


def test_what_may_not_be_read_is_said(web, cache):
    web.files["/a.png"] = png()
    web.fails = {"HEAD /a.png": [403] * 3, "GET /a.png": [403] * 3}
    with pytest.raises(BadCell, match="may not be read with the credentials there are"):
        open_image(f"{web.url}/a.png", Path())


def test_a_storage_that_is_away_stops_what_reads_rows(cache):
    """It isn't the row that is bad, and skipping it would lose it."""
    with pytest.raises(UserError, match="can't be reached"):
        open_image("http://127.0.0.1:9/a.png", Path())
