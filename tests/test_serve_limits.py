"""What a server refuses, and how it says so."""

import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
from serve_tester import picture, talk

from mope.cli import main
from mope.errors import UserError
from mope.media.cells import BadCell
from mope.serve.app import build_app
from mope.serve.limits import Refusal
from mope.serve.media import check_media, decode_base64
from mope.serve.settings import ServeSettings

pytest_plugins = ["serve_fixtures"]

TOKEN = "a-secret-of-27-characters.."


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd",
        "test_0.png",
        "../../etc/hostname",
        "https://example.com/x.png",
        "http://127.0.0.1:22/",
        "file:///etc/passwd",
        "data:image/png,abc",
        "a===",
        "äöü",
    ],
)
def test_paths_and_addresses_are_no_pictures(client, rows, value):
    answer = client.post("/v1/predict", json={"row": {**rows[0], "image": value}})
    assert answer.status_code == 200
    (found,) = answer.json()["predictions"]
    assert found["label"] is None
    assert "not base64" in found["error"]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"{", 400, "isn't JSON"),
        (b"", 400, "isn't JSON"),
        (b"\xff\xfe", 400, "isn't JSON"),
        (b"[]", 422, "A wrong shape"),
        (b"{}", 422, "A wrong shape"),
        (b'{"row": 3}', 422, "A wrong shape"),
        (b'{"rows": [3]}', 422, "Row 1: input should be an object"),
        (b'{"rows": [], "row": {}}', 422, "A wrong shape"),
        (b'{"row": {"text": "left"}}', 422, "has no 'image': the run's inputs are image, text"),
        (b'{"row": {"image": null}}', 422, "'image' must be base64"),
        (b'{"rows": [{"image": ""}, {"image": {"path": "/etc/passwd"}}]}', 422, "Row 2: 'image' must be"),
        (b'{"row": {"image": "", "picture": ""}}', 422, "has 'picture', but the run's inputs are"),
        (b'{"row": {"image": "", "text": 3}}', 422, "'text' must be a text"),
        (json.dumps({"row": {"image": "", "text": "x" * 501}}).encode(), 422, "longer than 500"),
        (json.dumps({"rows": [{"image": ""}] * 25}).encode(), 422, "At most 24 rows"),
        (b" " * (2**20 + 1), 413, "larger than 1 MB"),
    ],
)
def test_wrong_bodies(client, body, code, message):
    answer = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (code, ["error"])
    assert message in answer.json()["error"]


def test_a_refusal_is_short_however_long_what_it_is_about(client):
    strange = {"x" * 10_000: 0, **{f"key{n}": 0 for n in range(10_000)}}
    for body in ({"row": strange}, {"rows": [strange]}, strange, {"row": {}, **strange}):
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == 422
        assert len(answer.text) < 300


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "utf-16"])
def test_forms_are_in_utf_8(client, charset):
    form = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    body = b'--x\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\na\r\n--x--\r\n'
    answer = client.post("/v1/predict", content=body, headers=form)
    assert (answer.status_code, "UTF-8" in answer.text) == (400, True)


def test_another_sites_page_cannot_ask_a_local_server(client, rows):
    for origin in ("http://localhost", "https://example.com", "null"):
        answer = client.post(
            "/v1/predict", json={"row": rows[0]}, headers={"origin": origin, "host": "localhost:7860"}
        )
        assert (answer.status_code, "other sites" in answer.text) == (403, True)
    own = {"origin": "http://localhost:7860", "host": "localhost:7860"}
    assert client.post("/v1/predict", json={"row": rows[0]}, headers=own).status_code == 200


def test_a_streamed_body_is_limited_whatever_its_header_says(client):
    seen = 0

    async def endless():
        nonlocal seen
        for _ in range(100):
            seen += 2**16
            yield b" " * 2**16

    for headers in ({}, {"content-length": "10"}):
        answer = client.post(
            "/v1/predict", content=endless(), headers={"content-type": "application/json", **headers}
        )
        assert answer.status_code == 413
    form = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

    async def long_form():
        yield head
        for _ in range(100):
            yield b" " * 2**16

    assert client.post("/v1/predict", content=long_form(), headers=form).status_code == 413


def test_pictures_are_limited_before_they_are_decoded(client, rows):
    answer = client.post("/v1/predict", json={"rows": [rows[0], {"image": picture(300, 200)}]})
    assert answer.status_code == 413
    assert "Row 2, image: A picture of 300 x 200 pixels: at most 40,000" in answer.json()["error"]
    assert client.post("/v1/predict", json={"row": {"image": picture(200, 200)}}).status_code == 200


def test_media_are_what_they_seem():
    limits = ServeSettings(seconds=2)
    assert decode_base64("data:image/png;name=x;base64,YWJj") == b"abc"
    lists = (
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"ID3\x04\x00\x00\x00\x00\x00\x00#EXTM3U\nhttp://127.0.0.1/\n",
        b"ID3\x00ftyp#EXTM3U",
        b"v=0\r\nc=IN IP4 127.0.0.1\r\n",
        b"\x00\x00\x00\x18ftypmp42\n#EXTM3U\nhttp://127.0.0.1/\n",
    )
    for content in lists:
        for kind in ("audio", "video"):
            held = content.startswith(b"\x00\x00\x00\x18ftyp")
            with pytest.raises(BadCell, match="a list of files" if held else "wrong type"):
                check_media(kind, content, limits)
    # A note in front of sound may have a footer, and notes may be many.
    note = b"ID3\x04\x00\x10\x00\x00\x00\x00" + bytes(10)
    with pytest.raises(BadCell, match="broken audio"):
        check_media("audio", note + b"\xff\xfb", limits)
    with pytest.raises(BadCell, match="wrong type"):
        check_media("audio", b"ID3\x04\x00\x00\x00\x00\x00\x00" * 300_000, limits)
    with pytest.raises(BadCell, match="not base64"):
        decode_base64("data:" + ";" * 1_000_000)
    with pytest.raises(BadCell, match="not an image this library reads"):
        check_media("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", limits)


def test_audio_and_video_are_limited_by_their_length():
    soundfile, av = pytest.importorskip("soundfile"), pytest.importorskip("av")
    limits = ServeSettings(seconds=2, pixels=5000)
    for seconds, kind in ((1, "WAV"), (3, "WAV"), (3, "FLAC")):
        stream = io.BytesIO()
        soundfile.write(stream, numpy.random.default_rng(0).normal(size=8000 * seconds), 8000, format=kind)
        if seconds < 2:
            check_media("audio", stream.getvalue(), limits)
            continue
        with pytest.raises(Refusal, match="at most 2") as caught:
            check_media("audio", stream.getvalue(), limits)
        assert caught.value.status_code == 413
    for seconds, side, fine in ((1, 64, True), (3, 64, False), (1, 128, False)):
        stream = io.BytesIO()
        with av.open(stream, "w", format="mp4") as container:
            track = container.add_stream("mpeg4", rate=10)
            track.width, track.height, track.pix_fmt = side, side, "yuv420p"
            for _ in range(10 * seconds):
                frame = av.VideoFrame.from_ndarray(numpy.zeros((side, side, 3), numpy.uint8), format="rgb24")
                container.mux(track.encode(frame))
            container.mux(track.encode())
        if fine:
            check_media("video", stream.getvalue(), limits)
        else:
            with pytest.raises(Refusal) as caught:
                check_media("video", stream.getvalue(), limits)
            assert caught.value.reason == ("seconds" if side == 64 else "pixels")


def test_a_full_queue_says_so(predictor, rows):
    app = build_app(predictor, ServeSettings(page=False, rows=4, queue=4))
    engine = app.state.engine
    stop, started = threading.Event(), threading.Event()
    try:
        with talk(app) as client, ThreadPoolExecutor(1) as pool:
            held = engine.batcher.call(lambda: (started.set(), stop.wait(60)))
            assert started.wait(60)
            lane = app.state.runs.served.lane
            engine.batcher.reserve(2, lane)  # as of rows that are being read
            answer = client.post("/v1/predict", json={"rows": rows[:3]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "The queue is full (4 rows)" in answer.json()["error"]
            assert "mope_queue_rows 2.0" in client.get("/metrics").text
            engine.batcher.release(lane)
            engine.batcher.release(lane)
            waiting = pool.submit(client.post, "/v1/predict", json={"rows": rows[:4]})
            stop.set()
            assert waiting.result(60).status_code == 200
            assert held.result(60)
    finally:
        stop.set()
        engine.close()


def test_a_token_is_needed(predictor, rows):
    app = build_app(predictor, ServeSettings(host="0.0.0.0", token=TOKEN, page=False))
    try:
        with talk(app) as client:
            body = {"json": {"row": rows[0]}}
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                answer = client.post("/v1/predict", headers=headers, **body)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert "Name the token" in answer.json()["error"]
            right = {"Authorization": f"Bearer {TOKEN}"}
            assert client.post("/v1/predict", headers=right, **body).status_code == 200
            assert client.get("/healthz").status_code == 200
            for path in ("/metrics", "/docs", "/openapi.json"):
                assert client.get(path).status_code == 401
                assert client.get(path, headers=right).status_code == 200
            assert client.get("/", params={"token": "wrong"}).status_code == 401
            asked = client.get("/", headers={"Accept": "text/html"})
            assert asked.status_code == 401
            assert "<input name=token type=password" in asked.text
            answer = client.get("/", params={"token": TOKEN})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            assert TOKEN not in answer.headers["set-cookie"]
            assert "HttpOnly" in answer.headers["set-cookie"]
            # The cookie is for pages: another site's form could send it along to the API.
            assert client.get("/metrics").status_code == 200
            assert client.post("/v1/predict", **body).status_code == 401
    finally:
        app.state.engine.close()


def test_a_local_server_answers_to_local_names_only(client):
    assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 403
    for host in ("127.0.0.1:7860", "[::1]:7860", "localhost"):
        assert client.get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "give --token TOKEN"),
        ({"host": "::"}, "give --token TOKEN"),
        ({"host": "my-machine"}, "give --token TOKEN"),
        ({"host": "0.0.0.0", "token": "x" * 15}, "a token of 15 characters: take 16 or more"),
        ({"token": " "}, "The token is empty"),
        ({"rows": 0}, "--max-rows is 0"),
        ({"batch": 0}, "--batch-size is 0"),
        ({"queue": 3}, "less than the 64 rows"),
        ({"pixels": 10**9}, "are decoded"),
        ({"connections": 0}, "--max-connections is 0"),
        ({"header_bytes": -1}, "--max-header-bytes is -1"),
        ({"body_seconds": float("inf")}, "--max-body-seconds is a number that ends"),
        ({"header_seconds": float("nan")}, "--max-header-seconds is nan"),
        ({"port": 70_000}, "no port 70000"),
    ],
)
def test_a_server_that_will_not_start(options, message):
    with pytest.raises(UserError, match=message):
        ServeSettings(**options)


def test_the_command_refuses_in_one_sentence(served_run, monkeypatch, capsys):
    monkeypatch.delenv("MOPE_TOKEN", raising=False)
    assert main(["serve", str(served_run), "--host", "0.0.0.0", "--no-page"]) == 2
    assert "give --token TOKEN" in capsys.readouterr().err
    assert main(["serve", "none", "--no-page", "--port", "0"]) == 2
    assert "There is no run in none" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(served_run)]) == 2
    assert "pip install 'mope-fusion[serve]'" in capsys.readouterr().err
