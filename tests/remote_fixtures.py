"""A storage that speaks S3 and a web server, both on this machine, for the tests of rows from anywhere."""

import hashlib
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest

from mope.remote import failures


class Web:
    """A web server of files in memory, which counts what it is asked for, and fails as it is told.

    Attributes:
        files: content by path, such as `/rows.csv`.
        asked: how often each was asked for, by method and path, such as `GET /rows.csv`.
        fails: by method and path what the next answers are: a status, or "cut" for half the content.
        seconds: how long each answer takes.
        tags: whether it says of files by an ETag what version they are.
        sizes: whether it says how large they are.
        sent: bytes of contents that were taken.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.fails: dict[str, list[Any]] = {}
        self.tags, self.sizes, self.seconds, self.sent = True, True, 0.0, 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, whole: bool):
                asked = f"{self.command} {unquote(self.path)}"
                web.asked[asked] += 1
                time.sleep(web.seconds)
                content = web.files.get(unquote(self.path).partition("?")[0])
                fails = web.fails.get(asked, [])
                fail = fails.pop(0) if fails else 200 if content is not None else 404
                content = content if content is not None and fail in (200, "cut") else b""
                self.send_response(200 if fail == "cut" else fail)
                if web.sizes:
                    self.send_header("Content-Length", str(len(content)))
                if web.tags:
                    self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
                self.end_headers()
                content = content[: len(content) // 2] if fail == "cut" else content
                with suppress(ConnectionError):  # a reader may have enough
                    for start in range(0, len(content) if whole else 0, 2**16):
                        self.wfile.write(content[start : start + 2**16])
                        web.sent += len(content[start : start + 2**16])

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def contents(self) -> int:
        """How often any file's content was asked for."""
        return sum(count for asked, count in self.asked.items() if asked.startswith("GET"))


@pytest.fixture
def web():
    server = Web()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; and nobody waits before trying again."""
    monkeypatch.setenv("MOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(failures, "WAITS", (0.0, 0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def storage():
    """The endpoint of an S3 storage."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(storage: str, cache: Path, tables: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system with the tiny tables in `s3://rows/tiny`, and the environment that finds it."""
    for name, value in (
        ("AWS_ENDPOINT_URL", storage),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "something"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    system: Any = fsspec.filesystem("s3", use_listings_cache=False)
    if not system.exists("rows"):
        system.mkdir("rows")
        for file in tables.iterdir():
            system.pipe(f"rows/tiny/{file.name}", file.read_bytes())
    yield system
    type(system).clear_instance_cache()
