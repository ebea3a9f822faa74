"""Who may ask for what: the token, the host's name, and what of Gradio can be reached."""

import hashlib
import hmac
import json
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mope.serve.limits import CALLER, Refusal, busy, said
from mope.serve.settings import ServeSettings, is_loopback

UPLOADS = 16
"""So many of the largest bodies may wait in the page's folder to be removed."""

_COOKIE = "mope_token"
_OPEN = ("/healthz",)
_ONCE = (b"host", b"origin", b"authorization", b"content-type", b"content-length")

_ASK = """<!doctype html><html lang=en><meta charset=utf-8><title>mope</title>
<style>body{font:16px system-ui,sans-serif;max-width:26em;margin:15vh auto;padding:0 1em}
input,button{font:inherit;padding:.5em;width:100%;box-sizing:border-box;margin:.4em 0}</style>
<h1>This run takes a token</h1><form><label>Token <input name=token type=password autofocus></label>
<button>Open</button></form>"""


class Guard:
    """ASGI middleware that lets through who names the token, if there is one, and local callers if not.

    Without a token the server is local. Then a request must be meant for this machine by name too: else a web
    page of somebody's, whose name is made to point here, could ask in the name of who looks at it.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, on_refusal: Any):
        self.app, self.settings, self.on_refusal = app, settings, on_refusal
        self.secrets = {_digest(token): name for name, token in settings.callers.items()}
        self.has_callers = bool(settings.tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here has any
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._check_names(scope)
        if answer is None and scope["path"] not in _OPEN:
            answer = self._check(scope)
        if answer is None:
            await self.app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    def _check_names(self, scope: Scope) -> Response | None:
        """Refuse a request whose meaning would depend on which of two headers is read."""
        names = [name for name, _ in scope["headers"]]
        for name in _ONCE:
            if names.count(name) > 1:
                text = f"The request has several headers {name.decode()}: one is taken."
                return self._refuse(Refusal(400, "head", text))
        if b"host" not in names and scope["http_version"] not in ("0.9", "1.0"):
            return self._refuse(Refusal(400, "head", "The request has no header host."))
        return None

    def _check(self, scope: Scope) -> Response | None:
        """What to answer instead; None to let it through."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.secrets:
            named = headers.get("host", "")
            host = _host(named)
            if not (is_loopback(host) or host == self.settings.host):
                return self._refuse(Refusal(403, "host", f"This server is local: it isn't '{host[:80]}'."))
            # A browser says whose page asks: another site's may not, even if it couldn't read the answer.
            if "origin" in headers and headers["origin"].partition("://")[2].lower() != named.lower():
                return self._refuse(Refusal(403, "origin", "This server is local: other sites can't ask it."))
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._lets_in(_digest(token.strip()), scope):
            return None
        is_page = not scope["path"].startswith("/v1/")
        if is_page and self._lets_in(_cookie(headers.get("cookie", "")), scope):
            return None
        is_front = scope["path"] == "/" and scope["method"] == "GET"
        if is_front and (named := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            if self._lets_in(digest := _digest(named[0]), scope):
                return self._remember(scope, digest)
            self.on_refusal(Refusal(401, "token", "wrong"))
        if is_front and "text/html" in headers.get("accept", ""):
            return HTMLResponse(_ASK, 401, {"WWW-Authenticate": "Bearer"})
        return self._refuse(
            Refusal(
                401, "token", "Name the token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
            )
        )

    def _refuse(self, refusal: Refusal) -> Response:
        self.on_refusal(refusal)
        return said(refusal)

    def _lets_in(self, digest: str, scope: Scope) -> bool:
        """Whether a token is right, in a time that says nothing of how much of it is; the request knows then
        whose it is."""
        found = [name for secret, name in self.secrets.items() if hmac.compare_digest(digest, secret)]
        if self.has_callers and found:
            scope.setdefault("state", {})[CALLER] = found[0]
        return bool(found)

    def _remember(self, scope: Scope, digest: str) -> Response:
        """Go to the page, with a cookie instead of a token that would stay in the address."""
        answer = RedirectResponse("/", 303, {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"})
        secure = scope.get("scheme") == "https"
        answer.set_cookie(_COOKIE, digest, httponly=True, samesite="strict", secure=secure)
        return answer


def _digest(token: str) -> str:
    """What is compared and kept as a cookie in a token's place: of one length, and it gives nothing away."""
    return hashlib.sha256(b"mope " + token.encode("utf-8", "surrogateescape")).hexdigest()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(_COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value.encode("ascii", "replace").decode("ascii")


def _host(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


_GRADIO = "/gradio_api/"
_EVENTS = ("queue/", "run/predict")
_USED = (*_EVENTS, "upload", "file=", "heartbeat/", "startup-events", "theme.css", "app_id", "reset", "info")
_UNUSED = ("/monitoring", "/login", "/logout", "/token", "/user", "/custom_component", "/dev/")


class PageGuard:
    """ASGI middleware that leaves of Gradio what the page uses.

    Gradio would fetch an address that a request names in a file's place, and hand out addresses through
    itself; and it takes a path in a file's place for a file of this machine. So requests may name the files
    of its own folder alone, where uploads go, and its other ways in are refused.

    Args:
        app: what is guarded.
        settings: the limits; uploads that wait to be removed may be as large as 16 bodies.
        folder: Gradio's.
        on_refusal: is called with each refusal.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, folder: Path, on_refusal: Any):
        self.app, self.settings, self.folder = app, settings, folder
        self.on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith((_GRADIO, *_UNUSED)):
            await self.app(scope, receive, send)
            return
        rest = path.removeprefix(_GRADIO)
        refused = path.startswith(_UNUSED) or not rest.startswith(_USED)
        if refused or (rest.startswith("file=") and ":/" in rest):
            await self._refuse(scope, receive, send)
        elif rest.startswith("upload") and _size(self.folder) > UPLOADS * self.settings.bytes:
            await self._refuse(scope, receive, send, busy("There are too many uploads: try again later."))
        elif scope["method"] == "POST" and rest.startswith(_EVENTS):
            body = await _whole(receive)
            if body is None or not names_own_files(body, self.folder):
                await self._refuse(scope, receive, send)
            else:
                await self._ask(scope, _again(body, receive), send)
        else:
            await self._ask(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask Gradio, which fails where a request names a function or a file that there isn't."""
        held: list[Message] = []

        async def watch(message: Message) -> None:
            if held or message.get("status", 200) >= 500:
                held.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, watch)
        except (LookupError, TypeError, ValueError):
            if not held:  # it has begun to answer
                raise
            refusal = Refusal(400, "page", "The page can't make sense of this request.")
            await self._refuse(scope, receive, send, refusal)
            return
        for message in held:
            await send(message)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None = None
    ) -> None:
        refusal = refusal or Refusal(403, "page", "The page has no such thing.")
        self.on_refusal(refusal)
        await said(refusal)(scope, receive, send)


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None if the caller went away."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> Message:
        return left.pop() if left else await receive()

    return take


def is_inside(path: Any, folder: Path) -> bool:
    """Whether a path is that of something in a folder, wherever links lead."""
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def names_own_files(body: bytes, folder: Path) -> bool:
    """Whether all files in a request are paths in a folder; a body that isn't JSON names who knows what."""
    try:
        found = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while found:
        value = found.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if (path is not None and not is_inside(path, folder)) or value.get("is_stream"):
                return False
            found.extend(value.values())
        elif isinstance(value, list):
            found.extend(value)
    return True


def _size(folder: Path) -> int:
    """Bytes in a folder's files."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # one that is being removed
            total += file.stat().st_size
    return total
