"""What is refused, how that is said, and the limits on bodies, which trust no header."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mope.serve.settings import ServeSettings

RETRY_SECONDS = 1
"""What a full server tells callers to wait."""

CALLER = "mope_caller"
"""Where a request's state says whose token it named."""

BODIES = 16
"""So many of the largest bodies may be held at once, of all requests together."""

_BODIES_OF_A_CALLER = 2
"""So many a caller may have at least, however many callers share them."""

BYTES_PER_SECOND = 4096
"""What a body, and an answer on its way, makes at least, after some seconds that each is given."""

_KEPT = ("allow", "connection", "retry-after", "www-authenticate")
"""Headers of an error that stay."""

_PATIENCE = 5
"""Seconds for which a body that is refused is still taken."""


class Refusal(HTTPException):
    """An answer other than 200: a status, one sentence, and a word that metrics count it by."""

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.reason = reason


def busy(message: str) -> Refusal:
    """A refusal for now: 503 with Retry-After."""
    return Refusal(503, "queue", message, {"Retry-After": str(RETRY_SECONDS)})


def closing() -> Refusal:
    """The refusal of who comes too late."""
    return busy("The server is closing.")


def said(error: HTTPException) -> JSONResponse:
    """An error as the answer it is."""
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


class Turns:
    """How many rows each caller has in the works, which are bounded, so that one leaves room for others.

    Args:
        most: rows of a caller.
    """

    def __init__(self, most: int):
        self._most, self._rows, self._lock = most, Counter[str](), threading.Lock()

    @contextmanager
    def taken(self, caller: str | None, rows: int) -> Iterator[None]:
        """Begin to work on rows, each of which is to be given back, unless something is raised meanwhile.

        Raises:
            Refusal: 503, the caller has too many already.
        """
        if caller is None:
            yield
            return
        with self._lock:
            if self._rows[caller] + rows > self._most:
                raise busy(f"Your token has {self._most} rows in the works at most: try again in a second.")
            self._rows[caller] += rows
        try:
            yield
        except BaseException:
            self.give(caller, rows)
            raise

    def give(self, caller: str, rows: int) -> None:
        """They are done."""
        with self._lock:
            self._rows[caller] -= rows
            self._rows += Counter()  # without those that have none


class BodyLimit:
    """ASGI middleware: no body is larger than the limit, whatever its header says of it, or comes too slowly.

    The bodies of all requests together have a limit too, since they are in memory until they are read; where
    callers have tokens of their own, each has a share of it.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, on_refusal: Any):
        self.app, self.settings, self.on_refusal = app, settings, on_refusal
        self.held = Counter[str | None]()  # bytes by caller
        self.share = max(_BODIES_OF_A_CALLER, BODIES // max(1, len(settings.tokens)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken = 0
        started = ended = False
        caller: str | None = scope.get("state", {}).get(CALLER)
        pace = _Pace(self.settings.body_seconds)

        async def take() -> Message:
            nonlocal taken, ended
            message = await (receive() if ended else pace.wait(receive))
            if message["type"] == "http.request":
                ended = not message.get("more_body", False)
                size = len(message.get("body", b""))
                try:
                    self._check(taken + size, size, caller)
                except Refusal:
                    if message.get("more_body", False):
                        await self._drain(receive)
                    raise
                taken += size
                self.held[caller] += size
            return message

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            length = _length(scope)
            try:
                self._check(length, 0, caller)
            except Refusal:
                if length <= BODIES * self.settings.bytes:
                    await self._drain(receive)
                raise
            await self.app(scope, take, watch)
        except Refusal as refusal:
            if started:
                raise
            self.on_refusal(refusal)
            await said(refusal)(scope, receive, send)
        finally:
            self.held[caller] -= taken
            self.held += Counter()  # without those that have none

    async def _drain(self, receive: Receive) -> None:
        """Take and forget some of a body that is refused: many callers listen only after they have spoken."""
        left = BODIES * self.settings.bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b"")) + 1
                    if not message.get("more_body", False):
                        return

    def _check(self, size: int, more: int, caller: str | None) -> None:
        """Refuse a body of a size, or bytes more of it that don't go beside what is held."""
        limit = self.settings.bytes
        if size > limit:
            raise Refusal(
                413,
                "body",
                f"The body is larger than {self.settings.megabytes:g} MB.",
                {"Connection": "close"},
            )
        if self.held.total() + more > BODIES * limit:
            raise busy("The server is reading all it can hold: try again in a second.")
        if caller is not None and self.held[caller] + more > self.share * limit:
            most = f"{self.share * self.settings.megabytes:g} MB"
            raise busy(f"Your token's requests hold {most} at most: try again in a second.")


class _Pace:
    """How long a body may take: it has some seconds, and each 4,096 bytes that came give one back.

    Bytes give no more than those seconds, or a large body could stop for hours before its last byte. Time in
    which nobody asks for the body, as while its run is loaded, isn't the caller's and doesn't count.
    """

    def __init__(self, seconds: float):
        self.seconds, self.loop = seconds, asyncio.get_running_loop()
        self.last = self.loop.time()  # when it was waited for last
        self.end = self.last + seconds

    async def wait(self, receive: Receive) -> Message:
        """The next part of the body.

        Raises:
            Refusal: 408, it didn't come in time.
        """
        self.end += self.loop.time() - self.last
        try:
            async with asyncio.timeout_at(self.end):
                message = await receive()
        except TimeoutError:
            seconds, rate = f"{self.seconds:g} seconds", f"{BYTES_PER_SECOND:,} bytes"
            text = f"The body came too slowly: it has {seconds}, and each {rate} give one back."
            raise Refusal(408, "slow", text, {"Connection": "close"}) from None
        self.last = self.loop.time()
        earned = len(message.get("body", b"")) / BYTES_PER_SECOND
        self.end = min(self.end + earned, self.last + self.seconds)
        return message


class OneShape:
    """ASGI middleware: errors of others' code, such as Gradio's, have the shape that those of ours have."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def shape(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await said(_error_of(start, body))(scope, receive, send)

        await self.app(scope, receive, shape)


def _error_of(start: Message, body: bytes) -> HTTPException:
    """What an answer of whatever shape says of an error."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    text = found.get("error", found.get("detail")) if isinstance(found, dict) else None
    if not isinstance(text, str):
        text = f"{HTTPStatus(start['status']).phrase}."
    return HTTPException(start["status"], text, {name: headers[name] for name in _KEPT if name in headers})


class Closing:
    """ASGI app: requests that are still there when the server has waited long enough are told so."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not started:
                await said(closing())(scope, receive, send)


def _length(scope: Scope) -> int:
    """What the Content-Length header says; 0 without one that is a number."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
