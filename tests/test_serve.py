"""A run behind HTTP: right answers, however many ask, and one sentence for whoever asks wrongly."""

import base64
import io
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image

from mope.cli import main
from mope.config import Config
from mope.data.decode import BadCell
from mope.data.table import open_table
from mope.errors import UserError
from mope.predictor import Predictor
from mope.serve.app import build_app
from mope.serve.batching import Batcher
from mope.serve.limits import Refusal
from mope.serve.media import check_media, decode_base64
from mope.serve.settings import ServeSettings
from mope.training import train


@pytest.fixture(scope="session")
def served_run(weights, tables, tmp_path_factory) -> Path:
    """A finished run whose text may be missing."""
    inputs = {
        "image": {"kind": "image", "column": "picture", "encoder": {"weights": weights["image"]}},
        "text": {
            "kind": "text",
            "column": "question",
            "max_length": 16,
            "missing": "learn",
            "encoder": {"weights": weights["text"], "tuning": "prompt"},
        },
    }
    folder = tmp_path_factory.mktemp("served") / "run"
    data = {split: str(tables / f"{split}.csv") for split in ("train", "validation", "test")}
    config = {
        "inputs": inputs,
        "fusion": {"main": "image", "length": 2, "experts": 3},
        "data": {**data, "label": "colour", "workers": 0},
        "training": {
            "epochs": 6,
            "batch_size": 8,
            "precision": "fp32",
            "device": "cpu",
            "learning_rate": 5e-3,
        },
        "output": str(folder),
    }
    train(Config.parse(config), report=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def predictor(served_run) -> Predictor:
    return Predictor(served_run, device="cpu")


@pytest.fixture(scope="session")
def app(predictor):
    limits = ServeSettings(page=False, megabytes=1, pixels=40_000, seconds=2, characters=500, rows=24)
    app = build_app(predictor, limits)
    yield app
    app.state.engine.close()


@pytest.fixture
def client(app):
    with talk(app) as client:
        yield client


@contextmanager
def talk(app, **options):
    """A client of an app in this process, on a loop of its own."""
    import anyio.from_thread

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


@pytest.fixture(scope="session")
def rows(tables) -> list[dict]:
    """The test rows as requests hold them."""
    found = []
    for row in open_table(tables / "test.csv"):
        content = (tables / row["picture"]).read_bytes()
        found.append({"image": base64.b64encode(content).decode(), "text": row["question"]})
    return found


@pytest.fixture(scope="session")
def right(predictor, tables) -> list:
    """What the run says of them."""
    return predictor.predict(open_table(tables / "test.csv"))


def same(answer: dict, prediction) -> bool:
    return answer["error"] is None and answer["probabilities"] == pytest.approx(
        prediction.probabilities, abs=1e-5
    )


def picture(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_one_row_and_many_rows(client, rows, right):
    answer = client.post("/v1/predict", json={"row": rows[0]})
    assert answer.status_code == 200
    (one,) = answer.json()["predictions"]
    assert set(one) == {"label", "probabilities", "error"}
    assert one["label"] == right[0].label
    assert same(one, right[0])
    answer = client.post("/v1/predict", params={"routing": "true"}, json={"rows": rows})
    many = answer.json()["predictions"]
    assert len(many) == len(rows) == 20
    for found, wanted in zip(many, right, strict=True):
        assert same(found, wanted)
        assert found["routing"] == [pytest.approx(layer, abs=1e-5) for layer in wanted.routing]
    assert client.post("/v1/predict", json={"rows": []}).json() == {"predictions": []}


def test_data_uris_line_ends_and_missing_inputs(client, rows, predictor, tables):
    wrapped = "\n".join(rows[0]["image"][n : n + 76] for n in range(0, len(rows[0]["image"]), 76))
    image = f"data:image/png;base64,{rows[0]['image']}"
    sent = [{**rows[0], "image": wrapped}, {**rows[0], "image": image}, {"image": image}]
    sent.append({"image": image, "text": None})
    found = client.post("/v1/predict", json={"rows": sent}).json()["predictions"]
    content = (tables / "test_0.png").read_bytes()
    whole, bare = predictor.predict([{"picture": content, "question": t} for t in (rows[0]["text"], None)])
    for answer, wanted in zip(found, [whole, whole, bare, bare], strict=True):
        assert same(answer, wanted)


def test_a_bad_row_among_good_ones(client, rows, right):
    sent = [dict(row) for row in rows[:5]]
    sent[1]["image"] = base64.b64encode(b"not a picture").decode()
    sent[2]["text"] = "what\x00is"
    sent[3]["image"] = ""
    found = client.post("/v1/predict", params={"routing": True}, json={"rows": sent}).json()["predictions"]
    assert same(found[0], right[0])
    assert same(found[4], right[4])
    assert [found[n]["error"].split(":")[0] for n in (1, 2, 3)] == ["image", "text", "image"]
    for n in (1, 2, 3):
        assert found[n]["label"] is found[n]["probabilities"] is found[n]["routing"] is None


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


def test_other_methods_types_and_options(client, rows):
    for method in ("get", "put", "delete", "patch", "options"):
        answer = getattr(client, method)("/v1/predict")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    answer = client.post("/v1/predict", content=b"a=b", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json or multipart/form-data" in answer.json()["error"]
    answer = client.post("/v1/predict", params={"routing": "perhaps"}, json={"row": rows[0]})
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/healthz").json() == {"status": "ok"}


def test_forms(client, tables, rows, right):
    content = (tables / "test_0.png").read_bytes()
    file = {"image": ("a.png", content, "image/png")}
    for form in (
        {"files": file, "data": {"text": rows[0]["text"]}},
        {"files": {**file, "text": ("t.txt", rows[0]["text"].encode())}},
        {"files": {"text": (None, rows[0]["text"]), "image": (None, rows[0]["image"])}},
    ):
        (found,) = client.post("/v1/predict", **form).json()["predictions"]
        assert same(found, right[0])
    for form, code, message in (
        ({"files": {**file, "other": (None, "x")}}, 422, "has 'other'"),
        ({"files": {"text": (None, "left")}}, 422, "has no 'image'"),
        ({"files": [("image", file["image"])] * 2}, 422, "several parts named 'image'"),
        ({"files": {**file, "text": ("t", b"\xff")}}, 422, "isn't text in UTF-8"),
    ):
        answer = client.post("/v1/predict", **form)
        assert (answer.status_code, message in answer.json()["error"]) == (code, True)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for body, headers in ((b"--y\r\nx", broken), (b"x", {"content-type": "multipart/form-data"})):
        answer = client.post("/v1/predict", content=body, headers=headers)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])


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
            with pytest.raises(BadCell):
                check_media(kind, content, limits)
    with pytest.raises(BadCell, match="not an image this server reads"):
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


def test_64_clients_at_once_are_all_answered_rightly(client, app, rows, right):
    def ask(number):
        place = number % len(rows)
        return place, client.post("/v1/predict", json={"row": rows[place]})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(192)))
    for place, answer in answers:
        assert answer.status_code == 200
        (found,) = answer.json()["predictions"]
        assert found["label"] == right[place].label
        assert same(found, right[place])
    assert len(app.state.engine.batcher) == 0


def test_a_full_queue_says_so(predictor, rows):
    app = build_app(predictor, ServeSettings(page=False, rows=4, queue=4))
    engine = app.state.engine
    stop, started = threading.Event(), threading.Event()
    try:
        with talk(app) as client, ThreadPoolExecutor(1) as pool:
            held = engine.batcher.call(lambda: (started.set(), stop.wait(60)))
            assert started.wait(60)
            engine.batcher.reserve(2)  # as of rows that are being read
            answer = client.post("/v1/predict", json={"rows": rows[:3]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "The queue is full (4 rows)" in answer.json()["error"]
            assert "mope_queue_rows 2.0" in client.get("/metrics").text
            engine.batcher.release()
            engine.batcher.release()
            waiting = pool.submit(client.post, "/v1/predict", json={"rows": rows[:4]})
            stop.set()
            assert waiting.result(60).status_code == 200
            assert held.result(60)
    finally:
        stop.set()
        engine.close()


def test_metrics(client, rows):
    def numbers():
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = numbers()
    client.post("/v1/predict", json={"rows": [rows[0], rows[1], {"image": ""}]})
    client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"})
    after = numbers()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['mope_requests_total{code="200"}'] == grown['mope_requests_total{code="400"}'] == 1
    assert grown['mope_rows_total{outcome="predicted"}'] == grown["mope_batch_rows_sum"] == 2
    assert grown['mope_rows_total{outcome="unusable"}'] == grown['mope_errors_total{reason="json"}'] == 1
    assert grown["mope_request_seconds_count"] == 2
    assert after["mope_queue_rows"] == 0
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_a_token_is_needed(predictor, rows):
    app = build_app(predictor, ServeSettings(host="0.0.0.0", token="secret", page=False))
    try:
        with talk(app) as client:
            body = {"json": {"row": rows[0]}}
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                answer = client.post("/v1/predict", headers=headers, **body)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert "Name the token" in answer.json()["error"]
            right = {"Authorization": "Bearer secret"}
            assert client.post("/v1/predict", headers=right, **body).status_code == 200
            assert client.get("/healthz").status_code == 200
            for path in ("/metrics", "/docs", "/openapi.json"):
                assert client.get(path).status_code == 401
                assert client.get(path, headers=right).status_code == 200
            assert client.get("/", params={"token": "wrong"}).status_code == 401
            asked = client.get("/", headers={"Accept": "text/html"})
            assert asked.status_code == 401
            assert "<input name=token type=password" in asked.text
            answer = client.get("/", params={"token": "secret"})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            assert "secret" not in answer.headers["set-cookie"]
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
        ({"token": " "}, "The token is empty"),
        ({"rows": 0}, "--max-rows is 0"),
        ({"batch": 0}, "--batch-size is 0"),
        ({"queue": 3}, "less than the 64 rows"),
        ({"pixels": 10**9}, "are decoded"),
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
    assert "holds no finished run" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve", str(served_run)]) == 2
    assert "pip install 'mope[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_schema_is_kept(app, mode):
    """Schemathesis makes requests from the schema, right ones and wrong ones, and checks the answers."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().method == "post"]
    codes = set()
    is_right = mode == schemathesis.GenerationMode.POSITIVE
    # A wrong value in a form, such as an object, is sent as a text, which is right.
    kind = None if is_right else "application/json"

    @settings(
        max_examples=30,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, media_type=kind))
    def run(case):
        codes.add(case.call_and_validate(headers={"Host": "localhost"}).status_code)

    run()
    assert codes & ({200} if is_right else {400, 422}), codes


def test_a_broken_batch_costs_the_others_nothing():
    def run(samples):
        if any(sample < 0 for sample in samples):
            raise ValueError("negative")
        return [2 * sample for sample in samples]

    batcher = Batcher(run, size=8, queue=8)
    try:
        futures = [Future() for _ in range(4)]
        batcher.reserve(4)
        for sample, future in zip((1, -1, 3, 4), futures, strict=True):
            batcher.put(sample, future)
        assert [futures[n].result(10) for n in (0, 2, 3)] == [2, 6, 8]
        with pytest.raises(ValueError, match="negative"):
            futures[1].result(10)
    finally:
        batcher.close()
    with pytest.raises(Refusal, match="closing"):
        batcher.reserve(1)


def test_bench_serve(served_run, capsys):
    arguments = ["bench", "serve", str(served_run), "--repeats", "2", "--clients", "4", "--rows", "8"]
    assert main([*arguments, "--rounds", "1", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["single"]["ratio"] == result["single"]["served"] / result["single"]["bare"]
    assert result["parallel"]["ratio"] == result["parallel"]["served"] / result["parallel"]["offline"]
    assert main([*arguments, "--rounds", "0"]) == 2
