"""Hostile and broken requests by name: raw bytes, and the statuses that are right for them.

A kind of `row` is a sound request with a row that can't be used: 200, with that row's error.
"""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator

HOST = "Host: localhost"
JSON = "Content-Type: application/json"
FORM = "Content-Type: multipart/form-data; boundary=x"

Case = tuple[str, bytes, tuple[int, ...]]


def request(
    line: str = "POST /v1/predict HTTP/1.1", *headers: str, body: bytes = b"", host: str | None = HOST
) -> bytes:
    """A request as bytes, with a length if it has a body, that asks for the connection to end."""
    lines = [line, *([host] if host is not None else []), "Connection: close", *headers]
    if body and not any(header.lower().startswith(("content-length", "transfer-")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str, *headers: str) -> bytes:
    return request(f"GET {path} HTTP/1.1", *headers)


def said(content: object) -> bytes:
    return request("POST /v1/predict HTTP/1.1", JSON, body=json.dumps(content).encode())


def raw(body: bytes) -> bytes:
    return request("POST /v1/predict HTTP/1.1", JSON, body=body)


def form(body: bytes, header: str = FORM) -> bytes:
    return request("POST /v1/predict HTTP/1.1", header, body=body)


def part(name: str, content: bytes = b"left", more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def all_cases() -> list[Case]:
    return [*_lines(), *_headers(), *_framing(), *_json(), *_forms(), *_others(), *_page(), *_rows()]


def _lines() -> Iterator[Case]:
    """First lines that aren't HTTP, or ask for what there isn't."""
    for name, line in (
        ("no address", "GET HTTP/1.1"),
        ("no version", "GET /healthz"),
        ("method alone", "GET"),
        ("small letters", "get /healthz HTTP/1.1"),
        ("unknown method", "FROB /healthz HTTP/1.1"),
        ("tab", "GET\t/healthz\tHTTP/1.1"),
        ("blank in front", " GET /healthz HTTP/1.1"),
        ("blank in the address", "GET /health z HTTP/1.1"),
        ("blank behind", "GET /healthz HTTP/1.1 "),
        ("HTTP/0.9", "GET /healthz HTTP/0.9"),
        ("HTTP/2.0", "GET /healthz HTTP/2.0"),
        ("HTTP/9.9", "GET /healthz HTTP/9.9"),
        ("HTTP/1.10", "GET /healthz HTTP/1.10"),
        ("http in small letters", "GET /healthz http/1.1"),
        ("HTTPS", "GET /healthz HTTPS/1.1"),
        ("RTSP", "OPTIONS rtsp://localhost/ RTSP/1.0"),
        ("HTTP/2's preface", "PRI * HTTP/2.0"),
        ("NUL in the address", "GET /\0 HTTP/1.1"),
        ("control in the address", "GET /\x01 HTTP/1.1"),
        ("high bytes in the address", "GET /\xff\xfe HTTP/1.1"),
        ("no slash", "GET healthz HTTP/1.1"),
        ("backslash", "GET \\healthz HTTP/1.1"),
        ("star", "OPTIONS * HTTP/1.1"),
        ("CONNECT", "CONNECT example.com:443 HTTP/1.1"),
        ("another server's address", "GET http://example.com/healthz HTTP/1.1"),
        ("a file's address", "GET file:///etc/passwd HTTP/1.1"),
    ):
        yield f"line: {name}", request(line), (400,)
    yield "line: endless method", request(f"{'A' * 100_000} / HTTP/1.1"), (400, 431)
    yield "line: long address", get("/" + "a" * 40_000), (431,)
    yield "line: long query", get("/healthz?" + "a" * 40_000), (431,)
    yield "line: 10 MB address", get("/" + "a" * 10_000_000), (431,)
    yield "line: TLS", bytes.fromhex("16030100c6010000c20303") + bytes(range(195)), (400,)
    yield "line: SSH", b"SSH-2.0-OpenSSH_9.6\r\n", (400,)
    yield "line: SMTP", b"EHLO example.com\r\n", (400,)
    yield "line: redis", b"*1\r\n$7\r\nCOMMAND\r\n", (400,)
    yield "line: zeros", bytes(4096), (400,)
    yield "line: high bytes", b"\xff" * 4096, (400,)
    yield "line: line feeds alone", b"GET /healthz HTTP/1.1\nHost: localhost\n\n", (400,)
    yield "line: carriage returns alone", b"GET /healthz HTTP/1.1\rHost: localhost\r\r", (400,)
    yield "line: empty lines for ever", b"\r\n" * 50_000, (431,)


def _headers() -> Iterator[Case]:
    for name, headers, codes in (
        ("two hosts", ["Host: example.com"], (400,)),
        ("one host twice", [HOST], (400,)),
        ("two origins", ["Origin: http://localhost", "Origin: http://example.com"], (400,)),
        ("two tokens", ["Authorization: Bearer a", "Authorization: Bearer b"], (400,)),
        ("another site's page", ["Origin: https://example.com"], (403,)),
        ("a page of nowhere", ["Origin: null"], (403,)),
        ("a page of another port", ["Origin: http://localhost:1"], (403,)),
        ("no colon", ["nothing"], (400,)),
        ("no name", [": x"], (400,)),
        ("blank in a name", ["X Y: x"], (400,)),
        ("blank before the colon", ["X : x"], (400,)),
        ("folded", ["X: a\r\n b"], (400,)),
        ("folded first", [" X: a"], (400,)),
        ("NUL in a name", ["X\0: a"], (400,)),
        ("NUL in a value", ["X: a\0b"], (400,)),
        ("control in a value", ["X: a\x01b"], (400,)),
        ("high bytes in a name", ["\xe4: a"], (400,)),
        ("carriage return in a value", ["X: a\rb"], (400,)),
        ("line feed for an end", ["X: a\nY: b"], (400,)),
        ("brackets in a name", ["(X): a"], (400,)),
        ("40 kB in a value", ["X: " + "a" * 40_000], (431,)),
        ("40 kB in a name", ["a" * 40_000 + ": x"], (431,)),
        ("10 MB in a value", ["X: " + "a" * 10_000_000], (431,)),
        ("40 kB in many", [f"X{n}: " + "a" * 800 for n in range(50)], (431,)),
        ("101 headers", [f"X{n}: a" for n in range(101)], (431,)),
        ("10,000 headers", [f"X{n}: a" for n in range(10_000)], (431,)),
        ("10,000 empty ones", ["X:" for n in range(10_000)], (431,)),
        ("40 kB of cookies", ["Cookie: " + "; ".join(f"c{n}=x" for n in range(6_000))], (431,)),
    ):
        yield f"header: {name}", get("/metrics", *headers), codes
    line = "GET /metrics HTTP/1.1"
    yield "header: no host", request(line, host=None), (400,)
    yield "header: no host in HTTP/1.0", request("GET /metrics HTTP/1.0", host=None), (403,)
    for host in (
        "",
        "example.com",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "example.com:7860",
        "localhost@example.com",
        "localhost, example.com",
        "0.0.0.0",
        "2130706433",
        "127.1",
        "[::2]",
        "[::ffff:8.8.8.8]",
        "10.0.0.1",
        "\xff",
        "x" * 5_000,
    ):
        yield f"host: {host[:30]!r}", request(line, host=f"Host: {host}"), (403,)
    yield "header: no host, API", request(host=None), (400,)
    yield "header: two hosts, open", get("/healthz", "Host: example.com"), (400,)


def _framing() -> Iterator[Case]:
    """Lengths and chunks that contradict each other, or are no numbers."""
    good = b'{"rows": []}'
    for name, headers in (
        ("two lengths", ["Content-Length: 12", "Content-Length: 13"]),
        ("one length twice", ["Content-Length: 12", "Content-Length: 12"]),
        ("a list of lengths", ["Content-Length: 12, 12"]),
        ("a negative length", ["Content-Length: -1"]),
        ("a signed length", ["Content-Length: +12"]),
        ("a hexadecimal length", ["Content-Length: 0xc"]),
        ("a broken length", ["Content-Length: 1.2e1"]),
        ("an empty length", ["Content-Length: "]),
        ("no number for a length", ["Content-Length: many"]),
        ("a length of 30 digits", ["Content-Length: " + "9" * 30]),
        ("chunks and a length", ["Transfer-Encoding: chunked", "Content-Length: 12"]),
        ("an unknown encoding", ["Transfer-Encoding: xchunked"]),
        ("gzip alone", ["Transfer-Encoding: gzip"]),
        ("chunked, then gzip", ["Transfer-Encoding: chunked, gzip"]),
        ("chunked twice", ["Transfer-Encoding: chunked, chunked"]),
        ("an encoding with a control", ["Transfer-Encoding: \x0bchunked"]),
        ("Upgrade with a body", ["Connection: Upgrade", "Upgrade: h2c", "Content-Length: 12"]),
        ("websocket with a body", ["Connection: Upgrade", "Upgrade: websocket", "Content-Length: 12"]),
    ):
        yield f"framing: {name}", request("POST /v1/predict HTTP/1.1", JSON, *headers, body=good), (400,)
    yield (
        "framing: too long a length",
        request("POST /v1/predict HTTP/1.1", JSON, f"Content-Length: {10**17}", body=good),
        (413,),
    )
    for name, body, codes in (
        ("no size", b"\r\n" + good, (400,)),
        ("no number", b"zz\r\n" + good, (400,)),
        ("a negative size", b"-1\r\n" + good, (400,)),
        ("0x", b"0xc\r\n" + good, (400,)),
        ("a blank", b" c\r\n" + good, (400,)),
        ("17 digits", b"f" * 17 + b"\r\n" + good, (400,)),
        ("16 digits", b"7" + b"f" * 15 + b"\r\n" + b" " * 1_100_000, (413,)),
        ("no end of a chunk", b"c\r\n" + good + b"0\r\n\r\n", (400,)),
        ("line feeds alone", b"c\n" + good + b"\n0\n\n", (400,)),
        ("an endless size", b"0" * 100_000, (400, 408, 431)),
        ("an endless extension", b"c;" + b"a" * 400_000, (431,)),
        ("an extension with a control", b"c;\x01\r\n" + good + b"\r\n0\r\n\r\n", (400,)),
        ("an endless trailer", b"c\r\n" + good + b"\r\n0\r\nX: " + b"a" * 400_000, (431,)),
        ("many trailers", b"c\r\n" + good + b"\r\n0\r\n" + b"X: a\r\n" * 1_000, (431,)),
        ("a broken trailer", b"c\r\n" + good + b"\r\n0\r\n: a\r\n\r\n", (400,)),
        ("too large", b"100001\r\n" + b" " * 1_048_577 + b"\r\n0\r\n\r\n", (413,)),
        ("too large in many", b"8000\r\n%b\r\n" % (b" " * 32_768) * 33 + b"0\r\n\r\n", (413,)),
    ):
        chunked = request("POST /v1/predict HTTP/1.1", JSON, "Transfer-Encoding: chunked", body=body)
        yield f"chunks: {name}", chunked, codes
    # A trailer isn't a header, whatever its name.
    yield (
        "chunks: a type in the trailer",
        request(
            "POST /v1/predict HTTP/1.1",
            "Transfer-Encoding: chunked",
            body=b"c\r\n" + good + b"\r\n0\r\nContent-Type: application/json\r\n\r\n",
        ),
        (415,),
    )


def _json() -> Iterator[Case]:
    deep = 100_000
    for name, body in (
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
        ("deep lists", b"[" * deep + b"]" * deep),
        ("deep objects", b'{"row":' * deep + b"1" + b"}" * deep),
        ("deep lists in a row", b'{"row": {"image": ' + b"[" * deep + b"]" * deep + b"}}"),
        ("a number without an end", b"1" * 100_000 + b"e"),
        ("leading zeros", b'{"rows": 00}'),
        ("gzip", gzip.compress(b'{"rows": []}')),
        ("blanks", b" " * 1_000),
    ):
        yield f"json: {name}", raw(body), (400, 422)
    for name, content in (
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
    ):
        yield f"shape: {name}", said(content), (400, 422)
    routing = "POST /v1/predict?routing={} HTTP/1.1"
    for value in ("perhaps", "%00", "2", "[]", "true&routing=perhaps"):
        yield f"query: routing={value}", request(routing.format(value), JSON, body=b'{"rows": []}'), (422,)
    yield "json: 1 MB and a byte", raw(b" " * (2**20 + 1)), (413,)
    yield "json: 3 MB", raw(b" " * 3_000_000), (413,)


def _forms() -> Iterator[Case]:
    end = b"--x--\r\n"
    image = part("image", b"x", '; filename="a.png"')
    for name, body, codes in (
        ("another boundary", part("image").replace(b"--x", b"--y") + b"--y--\r\n", (400,)),
        ("no boundary in it", b"x" * 100, (400,)),
        ("nothing", end, (400, 422)),
        ("a part without a name", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n" + end, (400, 422)),
        ("a part without headers", b"--x\r\n\r\na\r\n" + end, (400, 422)),
        ("a broken header", b"--x\r\nContent-Disposition form-data\r\n\r\na\r\n" + end, (400,)),
        ("a long header", b"--x\r\nX: " + b"a" * 100_000 + b"\r\n\r\na\r\n" + end, (400, 422)),
        ("many headers", b"--x\r\n" + b"X: a\r\n" * 5_000 + b"\r\na\r\n" + end, (400, 422)),
        ("an empty name", image + part("") + end, (400, 422)),
        ("one part more", image + part("other") + end, (422,)),
        ("a path for a name", image + part("../../text") + end, (422,)),
        ("a long name", image + part("x" * 3_000) + end, (400, 422)),
        ("two images", image * 2 + end, (400, 422)),
        ("1,000 parts", part("text") * 1_000 + end, (400, 422)),
        ("no image", part("text") + end, (422,)),
        ("text that isn't UTF-8", image + part("text", b"\xff", '; filename="t"') + end, (422,)),
        ("text too long", image + part("text", b"x" * 501) + end, (422,)),
        (
            "NUL in a name",
            image + b'--x\r\nContent-Disposition: form-data; name="\0"\r\n\r\na\r\n' + end,
            (400, 422),
        ),
    ):
        yield f"form: {name}", form(body), codes
    whole = image + end
    for name, header in (
        ("no boundary", "Content-Type: multipart/form-data"),
        ("an empty boundary", "Content-Type: multipart/form-data; boundary="),
        ("a long boundary", "Content-Type: multipart/form-data; boundary=" + "x" * 1_000),
        ("a boundary of blanks", 'Content-Type: multipart/form-data; boundary="  "'),
        ("UTF-16", "Content-Type: multipart/form-data; boundary=x; charset=utf-16"),
        ("an unknown charset", "Content-Type: multipart/form-data; boundary=x; charset=nothing"),
        ("a codec that isn't text", "Content-Type: multipart/form-data; boundary=x; charset=base64"),
    ):
        yield f"form: {name}", form(whole, header), (400,)
    yield "form: too large", form(part("image", b" " * 1_100_000, '; filename="a"') + end), (413,)


def _others() -> Iterator[Case]:
    """Other types, methods and addresses."""
    body = b'{"rows": []}'
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "text/json",
        "*/*",
        "",
        "json",
        "a/b/c",
        "\xff",
    ):
        yield (
            f"type: {kind!r}",
            request("POST /v1/predict HTTP/1.1", f"Content-Type: {kind}", body=body),
            (415,),
        )
    yield "type: none", request("POST /v1/predict HTTP/1.1", body=body), (415,)
    yield "type: two", request("POST /v1/predict HTTP/1.1", JSON, FORM, body=body), (400,)
    yield (
        "type: packed",
        request("POST /v1/predict HTTP/1.1", JSON, "Content-Encoding: gzip", body=gzip.compress(body)),
        (400,),
    )
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "MKCOL"):
        yield f"method: {method}", request(f"{method} /v1/predict HTTP/1.1"), (405,)
    for path in ("/healthz", "/metrics", "/openapi.json", "/docs"):
        yield f"method: POST {path}", request(f"POST {path} HTTP/1.1", JSON, body=body), (405,)
        yield f"method: DELETE {path}", request(f"DELETE {path} HTTP/1.1"), (405,)
    for path in (
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
    ):
        yield f"path: {path[:40]}", get(path), (403, 404)


def _page() -> Iterator[Case]:
    """Ways into Gradio."""
    for path in (
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
    ):
        yield f"page: {path}", get(f"/gradio_api/{path}"), (400, 403, 404, 405)
    for path in ("monitoring", "login", "logout", "token", "user", "custom_component/x/y/z", "dev/reload"):
        yield f"page: /{path}", get(f"/{path}"), (403,)
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    good = {"data": [None, "left"], "fn_index": 0, "session_hash": "s"}
    for name, content in (
        ("a file of the machine", {**good, "data": [file, "left"]}),
        ("a file of the web", {**good, "data": [{**file, "path": "http://127.0.0.1/"}, "left"]}),
        ("a stream", {**good, "data": [{**file, "path": None, "is_stream": True}, "left"]}),
        ("a list for a path", {**good, "data": [{**file, "path": ["x"]}, "left"]}),
        ("no data", {"fn_index": 0, "session_hash": "s"}),
        ("data a text", {**good, "data": "x"}),
        ("a list", []),
        ("null", None),
        ("a function that isn't there", {**good, "fn_index": 10**6}),
        ("a function before the first", {**good, "fn_index": -1}),
        ("a function by a text", {**good, "fn_index": "x"}),
        ("a function of 400 digits", {**good, "fn_index": 10**400}),
        ("a trigger that is a text", {**good, "trigger_id": "x"}),
        ("a session that is a list", {**good, "session_hash": []}),
    ):
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
        join = request(
            "POST /gradio_api/queue/join HTTP/1.1", JSON, "Content-Type: x"[:0] or "X: y", body=body
        )
        yield f"page: join, {name}", join, (400, 403, 422)
    end = b"--x--\r\n"
    for name, body, headers in (
        ("no form", b"x", ("Content-Type: text/plain",)),
        ("no type", b"x", ()),
        ("no boundary", b"x", ("Content-Type: multipart/form-data",)),
        ("another boundary", b"--y\r\n\r\n", (FORM,)),
        ("a part without a name", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n" + end, (FORM,)),
        ("a text for a file", part("files") + end, (FORM,)),
    ):
        post = request("POST /gradio_api/upload HTTP/1.1", *headers, body=body)
        yield f"page: upload, {name}", post, (400, 403, 415, 422)
    large = part("files", b" " * 1_100_000, '; filename="a.png"') + end
    yield "page: upload, too large", request("POST /gradio_api/upload HTTP/1.1", FORM, body=large), (413,)
    chunks = b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n"
    post = request("POST /gradio_api/upload HTTP/1.1", FORM, "Transfer-Encoding: chunked", body=chunks)
    yield "page: upload, too large in chunks", post, (413,)
    for path in ("upload", "queue/join", "run/predict", "reset"):
        yield f"page: GET {path}", get(f"/gradio_api/{path}"), (403, 404, 405)
    for name, body in (("a list", b"[]"), ("half", b"{"), ("another event", b'{"event_id": 1}')):
        yield f"page: reset, {name}", request("POST /gradio_api/reset HTTP/1.1", JSON, body=body), (400, 422)
    yield "page: data without a session", get("/gradio_api/queue/data"), (400, 404, 422)


def png(width: int, height: int, tail: bytes = b"") -> bytes:
    """A picture that says it is so large, and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", head), (b"IDAT", tail), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def _rows() -> Iterator[Case]:
    for value in (
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
    ):
        yield f"row: image {value!r}", said({"row": {"image": value, "text": "left"}}), (200,)
    for name, content in (
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
    ):
        sent = {"row": {"image": base64.b64encode(content).decode(), "text": "left"}}
        yield f"row: {name}", said(sent), (200,)
    for name, size in (
        ("a bomb", (30_000, 30_000)),
        ("a long one", (2**31 - 1, 1)),
        ("just above", (201, 200)),
    ):
        sent = {"row": {"image": base64.b64encode(png(*size)).decode(), "text": "left"}}
        yield f"pixels: {name}", said(sent), (413,)
