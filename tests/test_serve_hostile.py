"""A running server is asked for nonsense, over sockets: it says no in one shape, and goes on."""

import json
import logging
import socket
import threading
from contextlib import suppress

import httpx
import pytest
from hostile_requests import all_cases
from serve_tester import serving

pytest_plugins = ["serve_fixtures"]

CASES = all_cases()
LIMITS = {
    "megabytes": 1,
    "pixels": 40_000,
    "characters": 500,
    "rows": 24,
    "connections": 150,
    "header_seconds": 2,
    "body_seconds": 2,
}


@pytest.fixture(scope="module")
def address(predictor):
    """A server with a page, that logs nothing all the while."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    with serving(predictor, **LIMITS) as address:
        for logger in loggers:
            logger.addHandler(handler)
        yield address
    for logger in loggers:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in said] == []


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(30)
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


def test_there_are_200_kinds():
    assert len({name for name, *_ in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize(("content", "codes"), [pytest.param(*case, id=name) for name, *case in CASES])
def test_hostile(address, content, codes):
    answer = ask(address, content)
    if codes == (200,):
        status, _, body = read(answer)
        assert status == 200
        (row,) = json.loads(body)["predictions"]
        assert row["error"]
        assert row["label"] is None
    else:
        assert check_refusal(answer, content.startswith(b"HEAD")) in codes, answer[:300]
    assert httpx.get(f"{address}/healthz").status_code == 200
