"""Files elsewhere that are too large: refused before they are fetched, or cut off."""

import io
import zipfile

import pytest

from mope.cli import main
from mope.config import MediaLimits
from mope.data.table import open_table
from mope.errors import UserError
from mope.media.cells import BadCell, fetch
from mope.media.images import open_image
from mope.remote import RemotePath, copies
from mope.remote.failures import NotThere
from mope.remote.sizes import Bound

pytest_plugins = ["remote_fixtures"]

LARGE = bytes(20 * 2**20)
SENTENCE = r"/x.png is larger than 1 MB: raise --max-megabytes \(data.limits.megabytes\) to take it"


@pytest.fixture
def table(web, cache):
    """A stranger's table on the web, which names a picture of 20 MB."""
    web.files |= {"/a.csv": b"picture,label\nx.png,a\n", "/x.png": LARGE}
    web.seconds = 0.0
    return f"{web.url}/a.csv"


def test_a_strangers_file_is_refused_by_what_its_storage_says_of_its_size(table, web, capsys):
    folder = open_table(table, trusted=False, limits=MediaLimits(megabytes=1)).folder
    with pytest.raises(BadCell, match=SENTENCE):
        open_image("x.png", folder)
    fetch(["x.png", "y.png"], folder)  # several at once are as well
    assert web.asked["GET /x.png"] == 0
    words = ["data", "check", table, "--label", "label", "--untrusted", "--max-megabytes", "1"]
    assert main(words) == 2
    assert "larger than 1 MB: raise --max-megabytes" in " ".join(capsys.readouterr().out.split())
    assert web.asked["GET /x.png"] == 0
    # With a limit that it is below it is fetched, and found to be no picture.
    with pytest.raises(BadCell, match="not an image"):
        open_image("x.png", open_table(table, trusted=False, limits=MediaLimits(megabytes=21)).folder)
    assert web.asked["GET /x.png"] == 1


def test_a_file_of_unknown_size_is_cut_off_at_the_limit(table, web):
    web.sizes = False
    folder = open_table(table, trusted=False, limits=MediaLimits(megabytes=1)).folder
    with pytest.raises(BadCell, match=SENTENCE):
        open_image("x.png", folder)
    assert 2**20 < web.sent < 15 * 2**20  # what was on its way is lost
    assert web.asked["GET /x.png"] <= 2  # fsspec's question for its size may be one; it isn't tried again
    assert not [file for file in copies._root().rglob("*.png*") if file.stat().st_size]


def test_a_file_in_a_storage_or_an_archive_has_the_same_limit(bucket, web):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"picture\nx.png\n")
        archive.writestr("x.png", LARGE)
    web.files["/a.zip"] = stream.getvalue()  # of a few kilobytes
    bucket.pipe("rows/large/a.csv", b"picture\nx.png\n")
    bucket.pipe("rows/large/x.png", LARGE)
    for name in ("s3://rows/large/a.csv", f"zip://a.csv::{web.url}/a.zip"):
        folder = open_table(name, trusted=False, limits=MediaLimits(megabytes=1)).folder
        with pytest.raises(BadCell, match=r"x\.png.* is larger than 1 MB"):
            open_image("x.png", folder)


def test_no_file_is_larger_than_all_copies_may_be(table, web, monkeypatch):
    monkeypatch.setenv("MOPE_REMOTE_GB", "0.01")
    for sizes in (True, False):
        web.sizes = sizes
        with pytest.raises(UserError, match=r"larger than 10 MB: raise MOPE_REMOTE_GB to take it"):
            RemotePath(f"{web.url}/x.png").local()
        assert web.asked["GET /x.png"] <= (0 if sizes else 2)
    with pytest.raises(BadCell, match="MOPE_REMOTE_GB"):
        open_image("x.png", open_table(table).folder)


def test_what_was_found_too_large_is_not_fetched_again(table, web):
    web.sizes = False
    folder = open_table(table, trusted=False, limits=MediaLimits(megabytes=1)).folder
    asked = []
    for _ in range(3):
        with pytest.raises(BadCell, match=SENTENCE):
            open_image("x.png", folder)
        asked.append(web.asked["GET /x.png"])
    assert asked[0] == asked[-1] > 0


def test_a_limit_is_named_in_a_unit_of_its_size():
    for most, words in ((52_428_800_000, "50,000 MB"), (100, "100 bytes"), (2**20, "1 MB")):
        with pytest.raises(NotThere, match=f"^a is larger than {words}: raise it to take it"):
            Bound(most, "it").check("a", most + 1)
