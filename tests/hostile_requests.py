"""Hostile and broken requests by name: raw bytes, and the statuses that are right for them.

A kind of `row` is a sound request with a row that can't be used: 200, with that row's error.
"""

import json
from collections.abc import Iterator

HOST = "Host: localhost"
JSON = "Content-Type: application/json"
EMPTY = b'{"rows": []}'
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


def http_cases() -> list[Case]:
    """What isn't HTTP, or contradicts itself, before anybody looks at a body."""
    return [*_lines(), *_headers(), *_framing()]


_LINES = (
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
)


def _lines() -> Iterator[Case]:
    """First lines that aren't HTTP, or ask for what there isn't."""
    for name, line in _LINES:
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


_HEADERS = (
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
)
_HOSTS = (
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
)


def _headers() -> Iterator[Case]:
    for name, headers, codes in _HEADERS:
        yield f"header: {name}", get("/metrics", *headers), codes
    line = "GET /metrics HTTP/1.1"
    yield "header: no host", request(line, host=None), (400,)
    yield "header: no host in HTTP/1.0", request("GET /metrics HTTP/1.0", host=None), (403,)
    for host in _HOSTS:
        yield f"host: {host[:30]!r}", request(line, host=f"Host: {host}"), (403,)
    yield "header: no host, API", request(host=None), (400,)
    yield "header: two hosts, open", get("/healthz", "Host: example.com"), (400,)


_LENGTHS = (
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
)
_CHUNKS = (
    ("no size", b"\r\n" + EMPTY, (400,)),
    ("no number", b"zz\r\n" + EMPTY, (400,)),
    ("a negative size", b"-1\r\n" + EMPTY, (400,)),
    ("0x", b"0xc\r\n" + EMPTY, (400,)),
    ("a blank", b" c\r\n" + EMPTY, (400,)),
    ("17 digits", b"f" * 17 + b"\r\n" + EMPTY, (400,)),
    ("16 digits", b"7" + b"f" * 15 + b"\r\n" + b" " * 1_100_000, (413,)),
    ("no end of a chunk", b"c\r\n" + EMPTY + b"0\r\n\r\n", (400,)),
    ("line feeds alone", b"c\n" + EMPTY + b"\n0\n\n", (400,)),
    ("an endless size", b"0" * 100_000, (400, 408, 431)),
    ("an endless extension", b"c;" + b"a" * 400_000, (431,)),
    ("an extension with a control", b"c;\x01\r\n" + EMPTY + b"\r\n0\r\n\r\n", (400,)),
    ("an endless trailer", b"c\r\n" + EMPTY + b"\r\n0\r\nX: " + b"a" * 400_000, (431,)),
    ("many trailers", b"c\r\n" + EMPTY + b"\r\n0\r\n" + b"X: a\r\n" * 1_000, (431,)),
    ("a broken trailer", b"c\r\n" + EMPTY + b"\r\n0\r\n: a\r\n\r\n", (400,)),
    ("too large", b"100001\r\n" + b" " * 1_048_577 + b"\r\n0\r\n\r\n", (413,)),
    ("too large in many", b"8000\r\n%b\r\n" % (b" " * 32_768) * 33 + b"0\r\n\r\n", (413,)),
)


def _framing() -> Iterator[Case]:
    """Lengths and chunks that contradict each other, or are no numbers."""
    for name, headers in _LENGTHS:
        yield f"framing: {name}", request("POST /v1/predict HTTP/1.1", JSON, *headers, body=EMPTY), (400,)
    yield (
        "framing: too long a length",
        request("POST /v1/predict HTTP/1.1", JSON, f"Content-Length: {10**17}", body=EMPTY),
        (413,),
    )
    for name, body, codes in _CHUNKS:
        chunked = request("POST /v1/predict HTTP/1.1", JSON, "Transfer-Encoding: chunked", body=body)
        yield f"chunks: {name}", chunked, codes
    # A trailer isn't a header, whatever its name.
    yield (
        "chunks: a type in the trailer",
        request(
            "POST /v1/predict HTTP/1.1",
            "Transfer-Encoding: chunked",
            body=b"c\r\n" + EMPTY + b"\r\n0\r\nContent-Type: application/json\r\n\r\n",
        ),
        (415,),
    )
