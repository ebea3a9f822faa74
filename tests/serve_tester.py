"""Clients of a served run, and what their answers are compared with, for the tests of serving."""

import base64
import io
import socket
import threading
import time
from contextlib import contextmanager

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
def serving(predictor, **options):
    """A server in a thread, and its address."""
    limits = ServeSettings(**{"grace_seconds": 1, **options})
    server = make_server(build_app(predictor, limits), limits)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def same(answer: dict, prediction) -> bool:
    return answer["error"] is None and answer["probabilities"] == pytest.approx(
        prediction.probabilities, abs=1e-5
    )


def picture(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
