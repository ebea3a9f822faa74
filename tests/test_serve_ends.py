"""How a server begins and ends: one for a port, every request answered, and no failure that nobody sees."""

import json
import socket
import threading
import time
from contextlib import closing

import pytest
from serve_tester import connect, quiet, read, running

import mope.cli.serve as command
from mope.errors import UserError
from mope.serve.app import build_app
from mope.serve.settings import ServeSettings

pytest_plugins = ["serve_fixtures"]


def test_a_half_sent_request_behind_another_costs_nobody_an_answer(predictor, rows):
    limits = ServeSettings(page=False, grace_seconds=20)
    app = build_app(predictor, limits)
    engine, stop, started = app.state.engine, threading.Event(), threading.Event()
    body = json.dumps({"row": rows[0]}).encode()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(app, limits) as (server, address), quiet(), closing(connect(address)) as connection:
        try:
            engine.batcher.call(lambda: (started.set(), stop.wait(60)))
            assert started.wait(60)
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"GET /heal")
            while len(engine.batcher) < 1:
                time.sleep(0.01)
            (held,) = server.server_state.connections
            server.should_exit = True
            while held.cycle.keep_alive:  # until it is told that the server ends
                time.sleep(0.01)
            stop.set()
            answer = b""
            while part := connection.recv(2**16):
                answer += part
        finally:
            stop.set()
    assert read(answer)[0] == 200


@pytest.mark.parametrize("failure", [RuntimeError("the loop broke"), SystemExit(3)])
def test_a_server_that_ends_by_itself_ends_the_command_with_an_error(monkeypatch, failure):
    class Server:
        should_exit = False

        def run(self, sockets):
            raise failure

    class Engine:
        def __init__(self):
            self.closed = threading.Event()

        def work(self):
            assert self.closed.wait(60)

        def close(self):
            self.closed.set()

    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    with socket.socket() as listener, pytest.raises(type(failure)) as caught:
        command._run(Server(), listener, Engine())
    assert caught.value is failure


def test_two_servers_never_have_one_port():
    """Two sockets may be bound to a port as long as neither listens."""
    with command._listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"Can't listen at 127.0.0.1, port {port}"):
            command._listen("127.0.0.1", port)
