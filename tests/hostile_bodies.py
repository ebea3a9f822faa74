"""Hostile and broken bodies, types, addresses and rows by name; see `hostile_requests`."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator

from hostile_requests import EMPTY, FORM, JSON, Case, form, get, part, raw, request, said


def body_cases() -> list[Case]:
    """What is HTTP, and asks for nonsense."""
    return [*_json(), *_forms(), *_others(), *_page(), *_rows()]


def png(width: int, height: int, tail: bytes = b"") -> bytes:
    """A picture that says it is so large, and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", head), (b"IDAT", tail), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


_BODIES = (
    ("half an object", b"{"),
    ("a comma at the end", b'{"rows": [],}'),
    ("single quotes", b"{'rows': []}"),
    ("a comment", b'{"rows": []} // x'),
    ("two documents", b'{"rows": []}{"rows": []}'),
    ("NUL behind", b'{"rows": []}\0'),
    ("NUL alone", b"\0"),
    ("UTF-16", '{"rows": []}'.encode("utf-16")),
    ("UTF-8 that is broken", b'{"row": {"text": "\xff"}}'),
    ("UTF-8 that is too long", b'{"row": {"text": "\xc0\xaf"}}'),
    ("half a surrogate", b'{"row": {"text": "\\ud800", "image": ""}}'),
    ("a control in a text", b'{"row": {"text": "\n"}}'),
    ("an unknown escape", b'{"row": {"text": "\\x41"}}'),
    ("deep lists", b"[" * 100_000 + b"]" * 100_000),
    ("deep objects", b'{"row":' * 100_000 + b"1" + b"}" * 100_000),
    ("deep lists in a row", b'{"row": {"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
    ("a number without an end", b"1" * 100_000 + b"e"),
    ("leading zeros", b'{"rows": 00}'),
    ("gzip", gzip.compress(b'{"rows": []}')),
    ("blanks", b" " * 1_000),
)
_SHAPES = (
    ("null", None),
    ("a number", 1),
    ("a text", "rows"),
    ("true", True),
    ("a list", []),
    ("an empty object", {}),
    ("both", {"rows": [], "row": {}}),
    ("another key", {"data": []}),
    ("one key more", {"rows": [], "x": 1}),
    ("keys by case", {"Rows": []}),
    ("rows null", {"rows": None}),
    ("rows a text", {"rows": "x"}),
    ("rows an object", {"rows": {"0": {}}}),
    ("rows in rows", {"rows": [[{}]]}),
    ("a row null", {"rows": [None]}),
    ("row a list", {"row": []}),
    ("row a text", {"row": "x"}),
    ("25 rows", {"rows": [{"image": ""}] * 25}),
    ("50,000 rows", {"rows": [{}] * 50_000}),
    ("an empty row", {"row": {}}),
    ("no image", {"row": {"text": "left"}}),
    ("image null", {"row": {"image": None}}),
    ("image a number", {"row": {"image": 1}}),
    ("image a list of bytes", {"row": {"image": [137, 80, 78, 71]}}),
    ("image an object", {"row": {"image": {"path": "/etc/passwd"}}}),
    ("image true", {"row": {"image": True}}),
    ("text a number", {"row": {"image": "", "text": 3}}),
    ("text a list", {"row": {"image": "", "text": ["left"]}}),
    ("text an object", {"row": {"image": "", "text": {"$ne": None}}}),
    ("text too long", {"row": {"image": "", "text": "x" * 501}}),
    ("text much too long", {"row": {"image": "", "text": "x" * 900_000}}),
    ("one input more", {"row": {"image": "", "picture": ""}}),
    ("a column's name", {"row": {"image": "", "question": "x"}}),
    ("__proto__", {"row": {"image": "", "__proto__": {}}}),
    ("__class__", {"row": {"image": "", "__class__": "x"}}),
    ("a model's field", {"row": {"image": "", "model_config": {}}}),
    ("a field's place", {"row": {"image": "", "input_0": ""}}),
    ("a long key", {"row": {"x" * 500_000: 1}}),
    ("50,000 keys", {"row": {f"k{n}": 1 for n in range(50_000)}}),
    ("a huge number", {"row": {"image": 10**400}}),
    ("NaN", {"row": {"image": float("nan")}}),
    ("Infinity", {"rows": float("inf")}),
)


def _json() -> Iterator[Case]:
    for name, body in _BODIES:
        yield f"json: {name}", raw(body), (400, 422)
    for name, content in _SHAPES:
        yield f"shape: {name}", said(content), (400, 422)
    routing = "POST /v1/predict?routing={} HTTP/1.1"
    for value in ("perhaps", "%00", "2", "[]", "true&routing=perhaps"):
        yield f"query: routing={value}", request(routing.format(value), JSON, body=b'{"rows": []}'), (422,)
    yield "json: 1 MB and a byte", raw(b" " * (2**20 + 1)), (413,)
    yield "json: 3 MB", raw(b" " * 3_000_000), (413,)


END = b"--x--\r\n"
IMAGE = part("image", b"x", '; filename="a.png"')

_PARTS = (
    ("another boundary", part("image").replace(b"--x", b"--y") + b"--y--\r\n", (400,)),
    ("no boundary in it", b"x" * 100, (400,)),
    ("nothing", END, (400, 422)),
    ("a part without a name", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END, (400, 422)),
    ("a part without headers", b"--x\r\n\r\na\r\n" + END, (400, 422)),
    ("a broken header", b"--x\r\nContent-Disposition form-data\r\n\r\na\r\n" + END, (400,)),
    ("a long header", b"--x\r\nX: " + b"a" * 100_000 + b"\r\n\r\na\r\n" + END, (400, 422)),
    ("many headers", b"--x\r\n" + b"X: a\r\n" * 5_000 + b"\r\na\r\n" + END, (400, 422)),
    ("an empty name", IMAGE + part("") + END, (400, 422)),
    ("one part more", IMAGE + part("other") + END, (422,)),
    ("a path for a name", IMAGE + part("../../text") + END, (422,)),
    ("a long name", IMAGE + part("x" * 3_000) + END, (400, 422)),
    ("two images", IMAGE * 2 + END, (400, 422)),
    ("1,000 parts", part("text") * 1_000 + END, (400, 422)),
    ("no image", part("text") + END, (422,)),
    ("text that isn't UTF-8", IMAGE + part("text", b"\xff", '; filename="t"') + END, (422,)),
    ("text too long", IMAGE + part("text", b"x" * 501) + END, (422,)),
    (
        "NUL in a name",
        IMAGE + b'--x\r\nContent-Disposition: form-data; name="\0"\r\n\r\na\r\n' + END,
        (400, 422),
    ),
)
_TYPES = (
    ("no boundary", "Content-Type: multipart/form-data"),
    ("an empty boundary", "Content-Type: multipart/form-data; boundary="),
    ("a long boundary", "Content-Type: multipart/form-data; boundary=" + "x" * 1_000),
    ("a boundary of blanks", 'Content-Type: multipart/form-data; boundary="  "'),
    ("UTF-16", "Content-Type: multipart/form-data; boundary=x; charset=utf-16"),
    ("an unknown charset", "Content-Type: multipart/form-data; boundary=x; charset=nothing"),
    ("a codec that isn't text", "Content-Type: multipart/form-data; boundary=x; charset=base64"),
)


def _forms() -> Iterator[Case]:
    for name, body, codes in _PARTS:
        yield f"form: {name}", form(body), codes
    whole = IMAGE + END
    for name, header in _TYPES:
        yield f"form: {name}", form(whole, header), (400,)
    yield "form: too large", form(part("image", b" " * 1_100_000, '; filename="a"') + END), (413,)


_KINDS = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "text/json",
    "*/*",
    "",
    "json",
    "a/b/c",
    "\xff",
)
_PATHS = (
    "/v1",
    "/v1/",
    "/v1/models",
    "/v1/predict/x",
    "/v1//predict",
    "/v1/../metrics/x",
    "/wp-login.php",
    "/.git/config",
    "/.env",
    "/etc/passwd",
    "//etc/passwd",
    "/../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%00",
    "/%c0%ae%c0%ae/etc/passwd",
    "/%zz",
    "/%",
    "/healthz/x",
    "/healthz%00",
    "/static/../../etc/passwd",
    "/assets/..%2f..%2fetc%2fpasswd",
    "/static/%2e%2e/%2e%2e/config.yaml",
    "/cgi-bin/x?a=;id",
    "/server-status",
    "/" + "a/" * 5_000,
)


def _others() -> Iterator[Case]:
    """Other types, methods and addresses."""
    for kind in _KINDS:
        yield (
            f"type: {kind!r}",
            request("POST /v1/predict HTTP/1.1", f"Content-Type: {kind}", body=EMPTY),
            (415,),
        )
    yield "type: none", request("POST /v1/predict HTTP/1.1", body=EMPTY), (415,)
    yield "type: two", request("POST /v1/predict HTTP/1.1", JSON, FORM, body=EMPTY), (400,)
    yield (
        "type: packed",
        request("POST /v1/predict HTTP/1.1", JSON, "Content-Encoding: gzip", body=gzip.compress(EMPTY)),
        (400,),
    )
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "MKCOL"):
        yield f"method: {method}", request(f"{method} /v1/predict HTTP/1.1"), (405,)
    for path in ("/healthz", "/metrics", "/openapi.json", "/docs"):
        yield f"method: POST {path}", request(f"POST {path} HTTP/1.1", JSON, body=EMPTY), (405,)
        yield f"method: DELETE {path}", request(f"DELETE {path} HTTP/1.1"), (405,)
    for path in _PATHS:
        yield f"path: {path[:40]}", get(path), (403, 404)


_WAYS_IN = (
    "file=/etc/passwd",
    "file=../../etc/passwd",
    "file=%2fetc%2fpasswd",
    "file=http://127.0.0.1/",
    "file=",
    "file=%00",
    "file/etc/passwd",
    "proxy=https://example.com/",
    "proxy=http://127.0.0.1:22/",
    "openapi.json",
    "deep_link",
    "stream/a/1/2/x",
    "static/x",
    "call/answer/x",
    "config",
    "nothing",
)
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
EVENT = {"data": [None, "left"], "fn_index": 0, "session_hash": "s"}

_EVENTS = (
    ("a file of the machine", {**EVENT, "data": [FILE, "left"]}),
    ("a file of the web", {**EVENT, "data": [{**FILE, "path": "http://127.0.0.1/"}, "left"]}),
    ("a stream", {**EVENT, "data": [{**FILE, "path": None, "is_stream": True}, "left"]}),
    ("a list for a path", {**EVENT, "data": [{**FILE, "path": ["x"]}, "left"]}),
    ("no data", {"fn_index": 0, "session_hash": "s"}),
    ("data a text", {**EVENT, "data": "x"}),
    ("a list", []),
    ("null", None),
    ("a function that isn't there", {**EVENT, "fn_index": 10**6}),
    ("a function before the first", {**EVENT, "fn_index": -1}),
    ("a function by a text", {**EVENT, "fn_index": "x"}),
    ("a function of 400 digits", {**EVENT, "fn_index": 10**400}),
    ("a trigger that is a text", {**EVENT, "trigger_id": "x"}),
    ("a session that is a list", {**EVENT, "session_hash": []}),
)


def _page() -> Iterator[Case]:
    """Ways into Gradio."""
    for path in _WAYS_IN:
        yield f"page: {path}", get(f"/gradio_api/{path}"), (400, 403, 404, 405)
    for path in ("monitoring", "login", "logout", "token", "user", "custom_component/x/y/z", "dev/reload"):
        yield f"page: /{path}", get(f"/{path}"), (403,)
    for name, content in _EVENTS:
        body = json.dumps(content).encode()
        for event in ("queue/join", "run/predict"):
            post = request(f"POST /gradio_api/{event} HTTP/1.1", JSON, body=body)
            yield f"page: {event}, {name}", post, (400, 403, 404, 405, 422)
    for name, body in (
        ("half", b"{"),
        ("deep", b"[" * 100_000),
        ("UTF-16", "{}".encode("utf-16")),
        ("none", b""),
    ):
        join = request("POST /gradio_api/queue/join HTTP/1.1", JSON, body=body)
        yield f"page: join, {name}", join, (400, 403, 422)
    for name, body, headers in (
        ("no form", b"x", ("Content-Type: text/plain",)),
        ("no type", b"x", ()),
        ("no boundary", b"x", ("Content-Type: multipart/form-data",)),
        ("another boundary", b"--y\r\n\r\n", (FORM,)),
        ("a part without a name", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END, (FORM,)),
        ("a text for a file", part("files") + END, (FORM,)),
    ):
        post = request("POST /gradio_api/upload HTTP/1.1", *headers, body=body)
        yield f"page: upload, {name}", post, (400, 403, 415, 422)
    large = part("files", b" " * 1_100_000, '; filename="a.png"') + END
    yield "page: upload, too large", request("POST /gradio_api/upload HTTP/1.1", FORM, body=large), (413,)
    chunks = b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n"
    post = request("POST /gradio_api/upload HTTP/1.1", FORM, "Transfer-Encoding: chunked", body=chunks)
    yield "page: upload, too large in chunks", post, (413,)
    for path in ("upload", "queue/join", "run/predict", "reset"):
        yield f"page: GET {path}", get(f"/gradio_api/{path}"), (403, 404, 405)
    for name, body in (("a list", b"[]"), ("half", b"{"), ("another event", b'{"event_id": 1}')):
        yield f"page: reset, {name}", request("POST /gradio_api/reset HTTP/1.1", JSON, body=body), (400, 422)
    yield "page: data without a session", get("/gradio_api/queue/data"), (400, 404, 422)


_IMAGES = (
    "",
    "/etc/passwd",
    "../../etc/hostname",
    "file:///etc/passwd",
    "http://127.0.0.1:22/",
    "data:image/png,abc",
    "data:image/png;base64,!!",
    "a===",
    "\u00e4\u00f6\u00fc",
    "\0",
)
_FILES = (
    ("no picture", b"not a picture"),
    ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    ("PDF", b"%PDF-1.7\n"),
    ("a playlist", b"#EXTM3U\nfile:///etc/passwd\n"),
    ("zip", b"PK\x03\x04" + bytes(100)),
    ("half a PNG", png(10, 10)[:30]),
    ("a PNG without pixels", png(10, 10)),
    ("a PNG of no size", png(0, 0)),
    ("a PNG with a wrong end", png(10, 10, b"x" * 100)),
    ("half a JPEG", b"\xff\xd8\xff\xe0" + bytes(20)),
    ("half a GIF", b"GIF89a\xff\xff\xff\xff"),
    ("a WebP of nothing", b"RIFF\xff\xff\xff\xffWEBPVP8 "),
    ("a TIFF in a circle", b"II*\x00\x08\x00\x00\x00" + bytes(2) + b"\x08\x00\x00\x00"),
    ("a BMP of 2 GB", b"BM" + b"\xff" * 60),
)


def _rows() -> Iterator[Case]:
    for value in _IMAGES:
        yield f"row: image {value!r}", said({"row": {"image": value, "text": "left"}}), (200,)
    for name, content in _FILES:
        sent = {"row": {"image": base64.b64encode(content).decode(), "text": "left"}}
        yield f"row: {name}", said(sent), (200,)
    for name, size in (
        ("a bomb", (30_000, 30_000)),
        ("a long one", (2**31 - 1, 1)),
        ("just above", (201, 200)),
    ):
        sent = {"row": {"image": base64.b64encode(png(*size)).decode(), "text": "left"}}
        yield f"pixels: {name}", said(sent), (413,)
