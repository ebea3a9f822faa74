"""Connections that send too little, too much or too slowly, by the dozen; and how a server ends."""

import select
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from serve_tester import ask, check_refusal, command, connect, quiet, read, serving

from mope.cli import main
from mope.serve.settings import ServeSettings, network_of

pytest_plugins = ["serve_fixtures"]

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b'Content-Length: 12\r\nConnection: close\r\n\r\n{"rows": []}'
HALVES = {
    "nothing": b"",
    "empty lines": b"\r\n\r\n",
    "half a line": b"POST /v1/pred",
    "half the headers": HEAD + b"X: ",
    "no body": HEAD + b"Content-Length: 12\r\n\r\n",
    "half a body": HEAD + b'Content-Length: 12\r\n\r\n{"rows"',
    "half a chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\nc\r\n{"rows"',
    "half a chunk's size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nc",
    "no last chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\nc\r\n{"rows": []}\r\n',
    "half a trailer": HEAD + b'Transfer-Encoding: chunked\r\n\r\nc\r\n{"rows": []}\r\n0\r\nX: ',
}

LARGE = {
    "a header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
    "an address": b"GET /",
    "a chunk's extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    "a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
}


@pytest.fixture(scope="module")
def address(predictor):
    limits = {"megabytes": 1, "connections": 120, "header_seconds": 1.5, "body_seconds": 1.5}
    with serving(predictor, page=False, **limits) as address, quiet():
        yield address


def one_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer, of a connection that stays."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(1)
    status, headers, _ = read(found)
    return status, headers, connection.recv(int(headers["content-length"]), socket.MSG_WAITALL)


def drain(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            answer += part
    return answer


def test_100_half_sent_requests_are_closed_in_time(address):
    with ExitStack() as stack:
        started = time.monotonic()
        waiting = []
        for name, half in [*HALVES.items()] * 10:
            waiting.append((name, stack.enter_context(closing(connect(address)))))
            waiting[-1][1].sendall(half)
        assert len(waiting) == 100
        all_sent = time.monotonic()
        # Who asks rightly is answered before the last of them is given up.
        assert read(ask(address, GOOD))[0] == 200
        assert select.select([waiting[-1][1]], [], [], 0)[0] == []
        for name, connection in waiting:
            answer = drain(connection)
            if name in ("nothing", "empty lines"):
                assert answer == b""
            else:
                assert check_refusal(answer) == 408
        assert time.monotonic() - started > 1.4
        assert time.monotonic() - all_sent < 4


def test_a_few_bytes_now_and_then_are_not_enough(address):
    """Each is sent a byte at a time, 0.2 seconds apart, for as long as the server takes them."""
    starts = [b"", b"GET /healthz HTTP/1.1\r\nX: ", HEAD + b"Content-Length: 500\r\n\r\n"]
    starts.append(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;")
    with ExitStack() as stack:
        waiting = {start: stack.enter_context(closing(connect(address))) for start in starts}
        for start, connection in waiting.items():
            connection.sendall(start)
        started = time.monotonic()
        while waiting and time.monotonic() - started < 6:
            time.sleep(0.2)
            for start, connection in list(waiting.items()):
                try:
                    connection.sendall(b" " if start else b"\r\n")
                except OSError:
                    del waiting[start]
        assert list(waiting) == []


def test_a_slow_body_that_goes_on_is_taken(address):
    """4,096 bytes make a second: this one takes longer than its first seconds, and is in time."""
    body = b'{"rows": []' + b" " * 30_000 + b"}"
    with closing(connect(address)) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        started = time.monotonic()
        for place in range(0, len(body), 3_000):
            connection.sendall(body[place : place + 3_000])
            time.sleep(0.2)
        assert time.monotonic() - started > 1.5
        assert read(drain(connection))[0] == 200


def test_connections_stay_for_the_next_request_but_not_for_ever(address):
    with closing(connect(address)) as connection:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one_answer(connection)[2] == b'{"status":"ok"}'
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        started = time.monotonic()
        assert check_refusal(drain(connection)) == 408
        assert 1 < time.monotonic() - started < 4


@pytest.mark.parametrize("rest", [b"", b"\r\n", b"\r\n\r\n"])
def test_an_idle_connection_is_closed_whatever_came_last(address, rest):
    """uvicorn stops its own clock with any byte: an empty line, or the end of a body that was answered."""
    for start, more in (
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", rest),
        (b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n", b"12345678" + rest),
    ):
        with closing(connect(address)) as connection:
            connection.sendall(start)
            assert one_answer(connection)[0] in (200, 404)
            connection.sendall(more)
            started = time.monotonic()
            assert drain(connection) == b""
            assert 1 < time.monotonic() - started < 8


def test_a_body_that_nobody_wants_is_forgotten_for_a_while(address):
    """Its head alone is answered; then its end is awaited, but not longer than another's."""
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with closing(connect(address)) as connection:
        connection.sendall(head % 8)
        assert one_answer(connection)[0] == 404
        connection.sendall(b"12345678" + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one_answer(connection)[2] == b'{"status":"ok"}'
        connection.sendall(head % 8)
        assert one_answer(connection)[0] == 404
        started = time.monotonic()
        assert drain(connection) == b""
        assert 1 < time.monotonic() - started < 4
    # Nor is it taken for ever, if it comes fast.
    chunked = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, sent, _ = send_large(address, chunked + b"ffffffff\r\n", 100)
    assert 16 <= sent < 60


def test_requests_in_a_row_are_answered_in_order(address):
    one, other = (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    with closing(connect(address)) as connection:
        connection.sendall((one + other) * 4 + GOOD)
        answer = drain(connection)
    codes = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [b"200", b"404"] * 4 + [b"200"]
    # What is broken behind a request doesn't cost it its answer.
    with closing(connect(address)) as connection:
        connection.sendall(GOOD.replace(b"Connection: close\r\n", b"") + b"\0\0\r\n\r\n")
        assert read(drain(connection))[2] == b'{"predictions":[]}'
    assert len(ask(address, one * 5_000)) < 5_000


def test_connections_above_the_limit_are_told_so(address):
    time.sleep(0.1)
    with ExitStack() as stack:
        held = [stack.enter_context(closing(connect(address))) for _ in range(120)]
        time.sleep(0.3)
        answer = ask(address, GOOD)
        assert check_refusal(answer) == 503
        assert read(answer)[1]["retry-after"] == "1"
        assert b"120 open connections" in answer
        more = [stack.enter_context(closing(connect(address))) for _ in range(100)]
        answers = [drain(connection) for connection in more]
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 503", b""}
        for connection in held:
            connection.close()
        time.sleep(0.3)
        assert read(ask(address, GOOD))[0] == 200


def test_an_address_has_connections_of_its_own(predictor):
    """Addresses of this machine stand for those of several: 127.0.0.2 is another's."""
    with serving(predictor, page=False, address_connections=30) as address, quiet(), ExitStack() as stack:
        held = [stack.enter_context(closing(connect(address))) for _ in range(30)]
        time.sleep(0.3)
        answer = ask(address, GOOD)
        assert check_refusal(answer) == 503
        assert read(answer)[1]["retry-after"] == "1"
        assert b"Your address has 30 open connections" in answer
        more = [stack.enter_context(closing(connect(address))) for _ in range(100)]
        assert {drain(connection)[:12] for connection in more} == {b"HTTP/1.1 503", b""}
        host, port = address.removeprefix("http://").split(":")
        with suppress(OSError), socket.create_connection((host, int(port)), 30, ("127.0.0.2", 0)) as other:
            other.sendall(GOOD)
            assert read(drain(other))[0] == 200
        for connection in held:
            connection.close()
        time.sleep(2.5)  # those that were told so are let go by then
        assert read(ask(address, GOOD))[0] == 200


def test_this_machine_has_any_number_unless_it_is_told(predictor):
    with serving(predictor, page=False) as address, quiet(), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(closing(connect(address)))
        assert read(ask(address, GOOD))[0] == 200


@pytest.mark.parametrize(
    ("host", "network", "most"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("::1", "::1", None),
        ("::ffff:127.0.0.1", "127.0.0.1", None),
        ("10.1.2.3", "10.1.2.3", 256),
        ("::ffff:10.1.2.3", "10.1.2.3", 256),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64", 256),
        ("fe80::1%eth0", "fe80::/64", 256),
        ("testclient", "testclient", 256),
    ],
)
def test_what_an_address_is_counted_by(host, network, most):
    assert network_of(host) == network
    assert ServeSettings().connections_of(network) == most
    assert ServeSettings(address_connections=7).connections_of(network) == 7


def test_who_takes_no_answer_is_not_waited_for(predictor):
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(predictor, page=False, send_buffer=4096, body_seconds=1) as address, quiet():
        with closing(connect(address, receive_buffer=4096)) as connection:
            started = time.monotonic()
            with suppress(OSError):
                while time.monotonic() - started < 10:
                    connection.sendall(asked)
                    time.sleep(0.01)
            assert 1 < time.monotonic() - started < 6
        # Who takes it slowly gets all of it.
        with closing(connect(address, receive_buffer=4096)) as connection:
            connection.sendall(asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            time.sleep(0.5)
            answer = b""
            while part := connection.recv(1024):
                answer += part
                time.sleep(0.02)
            status, headers, body = read(answer)
            assert (status, len(body)) == (200, int(headers["content-length"]))


def peak(process: subprocess.Popen) -> float:
    """Most memory that a process has had, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def send_large(address: str, start: bytes, megabytes: int) -> tuple[bytes, float, float]:
    """Send a start and then a's: the answer, the MB that were taken, and the seconds."""
    started, sent = time.monotonic(), 0
    with closing(connect(address)) as connection:
        with suppress(OSError):
            connection.sendall(start)
            while sent < megabytes * 2**20:
                sent += connection.send(b"a" * 2**16)
        return drain(connection), sent / 2**20, time.monotonic() - started


@pytest.mark.parametrize("start", LARGE.values(), ids=LARGE)
def test_300_mb_of_what_is_no_body_are_refused_early(address, start):
    answer, sent, seconds = send_large(address, start, 300)
    assert answer == b"" or check_refusal(answer) == 431
    assert sent < 50
    assert seconds < 5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_300_mb_cost_nothing_and_a_signal_ends_the_command_in_order(served_run):
    with command(served_run, "--max-grace-seconds", "3") as (process, address):
        assert httpx.post(f"{address}/v1/predict", json={"rows": []}, timeout=60).status_code == 200
        before = peak(process)
        for start in LARGE.values():
            send_large(address, start, 300)
        assert peak(process) - before < 20
        head = HEAD + b"Content-Length: 12\r\n\r\n"
        with closing(connect(address)) as finishes, closing(connect(address)) as never:
            for connection in (finishes, never):
                connection.sendall(head + b'{"rows"')
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(ConnectionRefusedError):
                connect(address)
            finishes.sendall(b": []}")
            assert read(drain(finishes))[2] == b'{"predictions":[]}'
            assert check_refusal(drain(never)) == 503
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_an_idle_command(served_run, name):
    with command(served_run) as (process, address):
        while httpx.get(f"{address}/healthz").status_code != 200:
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


def test_more_connections_than_files(served_run, capsys):
    resource = pytest.importorskip("resource")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        pytest.skip("a process may open any number of files here")
    assert main(["serve", str(served_run), "--no-page", "--max-connections", str(most)]) == 2
    assert f"may open {most} files: take up to {most - 320}" in capsys.readouterr().err
