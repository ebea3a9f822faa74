"""What a server counts, as Prometheus reads it."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mope_requests", "Requests to the API by status code.", ["code"], registry=self.registry
        )
        self.rows = Counter(
            "mope_rows", "Rows by outcome: predicted, or unusable.", ["outcome"], registry=self.registry
        )
        self.errors = Counter(
            "mope_errors", "Refused requests and failed passes by reason.", ["reason"], registry=self.registry
        )
        self.batches = Histogram(
            "mope_batch_rows", "Rows per forward pass.", buckets=_ROWS, registry=self.registry
        )
        self.forward = Histogram(
            "mope_forward_seconds", "Time of a forward pass.", buckets=_SECONDS, registry=self.registry
        )
        self.latency = Histogram(
            "mope_request_seconds", "Time of a request to the API.", buckets=_SECONDS, registry=self.registry
        )
        self.queue = Gauge("mope_queue_rows", "Rows that wait for the model.", registry=self.registry)
        for code in ("200", "422", "503"):
            self.requests.labels(code)
        for outcome in ("predicted", "unusable"):
            self.rows.labels(outcome)

    def refuse(self, refusal: Any) -> None:
        """Count a refusal by its reason."""
        self.errors.labels(refusal.reason).inc()

    def follow_queue(self, length: Callable[[], int]) -> None:
        """Say how the queue's length is found when it is asked for."""
        self.queue.set_function(length)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)


class Watch:
    """ASGI middleware that counts and times requests to the API."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        code, started = 500, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self.metrics.requests.labels(str(code)).inc()
            self.metrics.latency.observe(time.perf_counter() - started)
