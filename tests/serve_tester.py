"""Clients of a served run, and what their answers are compared with, for the tests of serving."""

import base64
import io
from contextlib import contextmanager

import anyio.from_thread
import httpx
import pytest
from PIL import Image


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


def same(answer: dict, prediction) -> bool:
    return answer["error"] is None and answer["probabilities"] == pytest.approx(
        prediction.probabilities, abs=1e-5
    )


def picture(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
