"""What is refused, how that is said, and the limit on bodies, which trusts no header."""

import asyncio
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mope.serve.settings import ServeSettings

RETRY_SECONDS = 1
"""What a full server tells callers to wait."""

_BODIES = 16
"""So many of the largest bodies may be held at once, of all requests together."""


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


def said(error: HTTPException) -> JSONResponse:
    """An error as the answer it is."""
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


class BodyLimit:
    """ASGI middleware: no body is larger than the limit, whatever its header says of it.

    The bodies of all requests together have a limit too, since they are in memory until they are read.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, on_refusal: Any):
        self.app, self.settings, self.on_refusal = app, settings, on_refusal
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken = 0
        started = False

        async def take() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                try:
                    self._check(taken + size, self.held + size)
                except Refusal:
                    if message.get("more_body", False):
                        await self._drain(receive)
                    raise
                taken += size
                self.held += size
            return message

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            length = _length(scope)
            try:
                self._check(length, self.held)
            except Refusal:
                if length <= _BODIES * self.settings.bytes:
                    await self._drain(receive)
                raise
            await self.app(scope, take, watch)
        except Refusal as refusal:
            if started:
                raise
            self.on_refusal(refusal)
            await said(refusal)(scope, receive, send)
        finally:
            self.held -= taken

    async def _drain(self, receive: Receive) -> None:
        """Take and forget some of a body that is refused: many callers listen only after they have spoken."""
        left = _BODIES * self.settings.bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b"")) + 1
                    if not message.get("more_body", False):
                        return

    def _check(self, size: int, held: int) -> None:
        limit = self.settings.bytes
        if size > limit:
            raise Refusal(
                413,
                "body",
                f"The body is larger than {self.settings.megabytes:g} MB.",
                {"Connection": "close"},
            )
        if held > _BODIES * limit:
            raise busy("The server is reading all it can hold: try again in a second.")


def _length(scope: Scope) -> int:
    """What the Content-Length header says; 0 without one that is a number."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
