"""What a server bounds before there is a request: connections, and the size and time of what comes first.

uvicorn has no settings for these, so its protocol is extended here. Bodies are bounded in `limits`, for any
server.
"""

import math
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mope.serve.limits import BODIES, BYTES_PER_SECOND, RETRY_SECONDS, Closing, Refusal, said
from mope.serve.settings import ServeSettings, network_of

TURNED_AWAY = 64
"""So many connections above the limit are told so at once; those beyond them are closed without a word."""

_LINGER = 2
"""Seconds for which a refused caller's bytes are still taken: many listen only after they have spoken."""
_LINGER_BYTES = 2**20

_PIPELINED = 16
"""Requests of a connection that may wait for the answers to those before them."""

_ALIVE = "/gradio_api/heartbeat/"
"""What an open page asks for: an answer that never ends."""


def make_server(app: FastAPI, settings: ServeSettings) -> uvicorn.Server:
    """The HTTP server of an app that `build_app` has made, with the limits that an app can't have by itself.

    Args:
        app: the run's.
        settings: those that the app was made with.

    Returns:
        The server: `run` serves until `should_exit` is set.
    """

    class Bounded(BoundedProtocol):
        limits = settings
        metrics = app.state.metrics
        of_addresses: ClassVar[Counter[str]] = Counter()

    return uvicorn.Server(
        uvicorn.Config(
            Closing(app),
            http=Bounded,
            ws="none",
            # Its warnings are one per broken request: the metrics count those.
            log_level="error",
            # The access log would hold a token that is named in an address.
            access_log=False,
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
        )
    )


class BoundedProtocol(HttpToolsProtocol):
    """A connection that ends when its caller sends too much, or too little for too long.

    A request's head, from its first byte to the empty line, has a size, a number of headers and a time. The
    parser gives a header only once it is whole, so bytes of which it gives nothing are counted as well.
    """

    limits: ServeSettings
    metrics: Any
    of_addresses: ClassVar[Counter[str]]
    """How many connections are open, of each address that has any."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._in_body = False  # else a head is awaited, or has begun
        self._has_begun = False
        self._is_heard = False  # whether the parser gave anything of the last bytes
        self._silent = 0  # bytes of which it gave nothing
        self._head_bytes = self._head_lines = 0
        self._left_bytes = 0  # taken and forgotten
        self._is_refused = False
        self._timer: Any = None
        self._watch: Any = None  # over what isn't sent yet
        self._unsent = 0
        self._network: str | None = None  # None also of a local socket, which has no address

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        most, every = self.limits.connections, len(self.connections)
        own, held = self._count_address()
        if every > most + TURNED_AWAY or (own is not None and held > own + TURNED_AWAY):
            transport.abort()
        elif every > most:
            self._turn_away(f"The server has {most} open connections, as many as it takes")
        elif own is not None and held > own:
            self._turn_away(f"Your address has {own} open connections, as many as one may have")
        else:
            self._wait_for_head()

    def _count_address(self) -> tuple[int | None, int]:
        """Count this connection: how many its address may have, and how many it has."""
        if self.client is None:
            return None, 0
        self._network = network_of(self.client[0])
        self.of_addresses[self._network] += 1
        return self.limits.connections_of(self._network), self.of_addresses[self._network]

    def _turn_away(self, why: str) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        self._refuse(Refusal(503, "connections", f"{why}: try again in a second.", headers))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._network is not None:
            self.of_addresses[self._network] -= 1
            if not self.of_addresses[self._network]:
                del self.of_addresses[self._network]
            self._network = None
        self._stop_waiting()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._forget(len(data), _LINGER_BYTES)
            return
        self._unset_keepalive_if_required()
        self._is_heard = False
        parser: Any = self.parser
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # what follows may be of another protocol
        except httptools.HttpParserError as error:
            # What one of the methods below has raised, or the parser itself.
            broken = Refusal(400, "head", "The request is broken: it isn't HTTP/1.1.")
            self._refuse(error.__context__ if isinstance(error.__context__, Refusal) else broken)
            return
        self._silent = 0 if self._is_heard else self._silent + len(data)
        if self._silent > self.limits.header_bytes:
            self._refuse(self._too_large())
        elif not self._in_body and self._timer is None and self._is_idle():
            # An empty line in front of a request, or the end of a body that was answered before.
            self._wait_for_head()

    def shutdown(self) -> None:
        """End the connection, once its request is answered; that of an open page at once."""
        super().shutdown()
        # The scope may be that of the next request, of whose head not even the path has come.
        if not self._is_idle() and self.cycle.scope["path"].startswith(_ALIVE):
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_heard = self._has_begun = True
        self._head_bytes = self._head_lines = 0
        if self._timer is None:
            self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_lines += 1
        if self._head_lines > self.limits.headers:
            raise Refusal(431, "head", f"A request has at most {self.limits.headers} headers.")
        self._count(len(name) + len(value) + len(b": \r\n"))
        # Those behind a body would stand among the others, unseen by who has looked at them.
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        parser: Any = self.parser
        if parser.get_http_version() not in ("1.0", "1.1"):
            raise Refusal(400, "head", "This server speaks HTTP/1.1.")
        if not self.url.startswith(b"/"):
            raise Refusal(400, "head", "A request's address begins with a slash.")
        names = {name for name, _ in self.headers}
        if parser.should_upgrade() and names & {b"content-length", b"transfer-encoding"}:
            # The parser takes a body after it for another protocol's.
            raise Refusal(400, "head", "This server speaks HTTP/1.1: leave the header Upgrade out.")
        if len(self.pipeline) >= _PIPELINED:
            raise Refusal(400, "head", "Too many requests wait for the answers to those before them.")
        self._in_body, self._left_bytes = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._is_heard = True
        super().on_body(body)
        if self.cycle.response_complete:
            self._forget(len(body), BODIES * self.limits.bytes)

    def on_message_complete(self) -> None:
        self._is_heard, self._in_body, self._has_begun = True, False, False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self._in_body and self._is_idle():
            # It was answered by its head alone: the rest of its body is forgotten, for a while.
            self._unset_keepalive_if_required()
            self._wait(self.limits.body_seconds, self._leave)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds: float, function: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, function)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_for_head(self) -> None:
        self._wait(self.limits.header_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.flow.read_paused:  # for answers to requests before it
            self._wait_for_head()
        elif self._has_begun:
            seconds = self.limits.header_seconds
            self._refuse(
                Refusal(408, "slow", f"The request's headers weren't whole after {seconds:g} seconds.")
            )
        else:
            self._leave()

    def _count(self, size: int) -> None:
        self._is_heard = True
        self._head_bytes += size
        if self._head_bytes > self.limits.header_bytes:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(
            431, "head", f"The address and headers are larger than {self.limits.header_bytes} bytes."
        )

    def _forget(self, size: int, most: int) -> None:
        """Take bytes that nobody wants; too many end the connection."""
        self._left_bytes += size
        if self._left_bytes > most:
            self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in the app's place, and end the connection."""
        self.metrics.errors.labels(refusal.reason).inc()
        self._is_refused, self._left_bytes = True, 0
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if not self._is_idle():
            if not self.cycle.more_body:  # the request before is answered first, and last
                self.cycle.keep_alive = False
                return
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self.transport.write(_written(refusal, self.server_state.default_headers))
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.abort)

    def _leave(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._watch_writing()

    def _watch_writing(self) -> None:
        """Don't wait for a caller who doesn't take the answer."""
        if self._watch is None:
            self._unsent = self.transport.get_write_buffer_size()
            self._watch = self.loop.call_later(self.limits.body_seconds, self._check_writing)

    def _check_writing(self) -> None:
        self._watch = None
        left = self.transport.get_write_buffer_size()
        if left and (self.flow.write_paused or self.transport.is_closing()):
            if self._unsent - left < min(self._unsent, self.limits.body_seconds * BYTES_PER_SECOND):
                self.transport.abort()
            else:
                self._watch_writing()


def _written(refusal: Refusal, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A refusal as the bytes of an answer."""
    answer = said(refusal)
    status = HTTPStatus(answer.status_code)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in (*headers, *answer.raw_headers)]
    return b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)])
