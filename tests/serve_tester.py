"""Clients of a served run, and what their answers are compared with, for the tests of serving."""

import base64
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio.from_thread
import httpx
import pytest
from PIL import Image

from mope.serve.app import build_app
from mope.serve.connections import make_server
from mope.serve.settings import ServeSettings


@contextmanager
def talk(app, **options):
    """A client of an app in this process, on a loop of its own."""
    with anyio.from_thread.start_blocking_portal() as portal:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        asynchronous = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=60, **options
        )

        class Client:
            def __getattr__(self, name):
                return lambda *args, **kwargs: portal.call(
                    lambda: getattr(asynchronous, name)(*args, **kwargs)
                )

        yield Client()


@contextmanager
def serving(predictor, send_buffer: int | None = None, **options):
    """A server in a thread, and its address; where wanted with a small buffer for what it sends."""
    limits = ServeSettings(**{"grace_seconds": 1, **options})
    with running(build_app(predictor, limits), limits, send_buffer) as (_, address):
        yield address


@contextmanager
def running(app, limits: ServeSettings, send_buffer: int | None = None):
    """An app's server in a thread, and its address."""
    server = make_server(app, limits)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def connect(address: str, receive_buffer: int | None = None) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    try:
        connection.connect((host, int(port)))
    except OSError:
        connection.close()
        raise
    return connection


def ask(address: str, content: bytes) -> bytes:
    """All that the server answers until it closes."""
    with connect(address) as connection:

        def send():
            with suppress(OSError):  # it has heard enough
                connection.sendall(content)

        thread = threading.Thread(target=send)
        thread.start()
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(2**16):
                answer += part
        thread.join(30)
    return answer


def read(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, the only one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split(" ")[1]), headers, body


def check_refusal(answer: bytes, head_only: bool = False) -> int:
    """That an answer has the one shape; its status."""
    status, headers, body = read(answer)
    assert headers["content-type"] == "application/json", answer[:300]
    assert 400 <= status < 500 or status == 503, answer[:300]
    if head_only:
        assert body == b""
        return status
    assert int(headers["content-length"]) == len(body)
    found = json.loads(body)
    assert list(found) == ["error"]
    assert isinstance(found["error"], str)
    assert 5 < len(found["error"]) < 300
    return status


@contextmanager
def quiet():
    """See to it that the server logs nothing, a traceback least of all."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert [record.getMessage() for record in said] == []


async def spoken(send) -> None:
    """Answer a request, as an app does."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def asked(rows, name):
    """Rows as a run takes them."""
    return [{"text": row["text"]} for row in rows] if name == "words" else rows


def predict(client, name, rows):
    answer = client.post(f"/v1/runs/{name}/predict?routing=true", json={"rows": asked(rows, name)})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def same(answer: dict, prediction) -> bool:
    return answer["error"] is None and answer["probabilities"] == pytest.approx(
        prediction.probabilities, abs=1e-5
    )


def picture(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@contextmanager
def command(run: Path, *words: str):
    """`mope serve` in a process of its own: the process, and its address."""
    start = [sys.executable, "-m", "mope", "serve", str(run), "--port", "0", "--json", "--no-page"]
    process = subprocess.Popen(
        [*start, "--device", "cpu", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.communicate(timeout=60)
