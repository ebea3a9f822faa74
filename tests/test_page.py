"""The page in a browser: upload, predict, and see routing and attention change with the text."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy
import pytest
from PIL import Image
from run_tester import enlarged, tiny_run
from serve_tester import running, serving

from mope.config import Config, InputConfig
from mope.data.table import open_table
from mope.media.masks import open_mask
from mope.predictor import Predictor
from mope.serve.app import build_app
from mope.serve.settings import ServeSettings
from mope.serve.views import attention_picture, masked_picture, routing_html
from mope.training import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def run(weights, tables, tmp_path_factory):
    """A run whose encoders are random on such a scale that texts differ much, and attention with them."""
    folder = tmp_path_factory.mktemp("page")
    config = tiny_run(enlarged(weights, folder), tables, folder / "run", epochs=8, learning_rate=2e-2)
    config["fusion"] |= {"length": 4, "temperature": 1.0}
    train(Config.parse(config), report=lambda line: None)
    return folder / "run"


@pytest.fixture(scope="module")
def address(run):
    with serving(Predictor(run, device="cpu"), megabytes=1) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    yield page
    page.close()


def routing(page) -> list[str]:
    return page.locator("#routing td").evaluate_all("cells => cells.map(cell => cell.title)")


@needs_browser
def test_upload_predict_and_what_changes_with_the_text(page, address, run, tables):
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.goto(address)
    page.set_input_files("#input-image input[type=file]", str(tables / "test_0.png"))
    page.wait_for_selector("#input-image img")
    seen = {}
    predictor = Predictor(run, device="cpu")
    for text in ("what is left ?", "what is on the right side ?"):
        before = seen and page.locator("#attention img").get_attribute("src")
        page.fill("#input-text textarea", text)
        page.click("#predict")
        page.wait_for_function(
            "old => { const image = document.querySelector('#attention img');"
            " return image && image.getAttribute('src') !== old }",
            arg=before or "",
        )
        page.wait_for_selector("#routing td")
        (wanted,) = predictor.predict([{"picture": str(tables / "test_0.png"), "question": text}])
        assert wanted.label in page.locator("#answer").inner_text()
        shares = [f"{100 * score:.1f} %" for layer in wanted.routing for score in layer]
        page.wait_for_function(
            "wanted => [...document.querySelectorAll('#routing td')].map(c => c.title).join() === wanted",
            arg=",".join(shares),
        )
        seen[text] = (routing(page), page.locator("#attention img").get_attribute("src"))
    (one, one_look), (other, other_look) = seen.values()
    assert len(one) == 2 * 3
    assert one != other
    assert one_look != other_look
    assert not failed
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}


@needs_browser
def test_examples_fill_the_widgets_and_errors_are_shown(page, address, tables):
    page.goto(address)
    page.wait_for_selector("#predict")
    page.click("#predict")
    refused = page.get_by_text("no image: the cell is empty")
    refused.wait_for()
    assert page.locator("#routing td").count() == 0
    page.locator("table tbody tr").first.click()
    page.wait_for_selector("#input-image img")
    question = open_table(tables / "test.csv")[0]["question"]
    assert page.locator("#input-text textarea").input_value() == question
    page.click("#predict")
    page.wait_for_selector("#routing td")
    refused.wait_for(state="hidden")


@needs_browser
def test_a_token_opens_the_page(browser, run):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    with serving(Predictor(run, device="cpu"), token="secret") as address:
        page.goto(address)
        page.fill("input[name=token]", "wrong")
        page.click("button")
        page.fill("input[name=token]", "secret")
        page.click("button")
        page.wait_for_selector("#predict")
        assert page.url == f"{address}/"
        assert httpx.get(f"{address}/config").status_code == 401
        context.close()


def test_what_of_gradio_can_be_reached(address, run, tables):
    ask = httpx.Client(base_url=address, timeout=60)
    for path in (
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={run}/config.yaml",
        f"/gradio_api/file={tables}/test_0.png",
        f"/gradio_api/file={address}/healthz",
        "/gradio_api/proxy=https://example.hf.space/",
        "/gradio_api/openapi.json",
        "/gradio_api/run/answer",
        "/gradio_api/deep_link",
        "/monitoring",
    ):
        assert ask.get(path).status_code in (403, 404), path
    assert ask.get("/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    assert ask.get("/config").json()["analytics_enabled"] is False
    for path in ("call/answer", "api/predict", "run/answer"):
        assert ask.post(f"/gradio_api/{path}", json={"data": []}).status_code == 403
    for path in (f"{address}/x.png", "file:///etc/passwd", ["x"]):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file, "left"], "fn_index": 0, "session_hash": "s"}
        for event in ("queue/join", "run/predict"):
            assert ask.post(f"/gradio_api/{event}", json=body).status_code == 403
    assert ask.post("/gradio_api/queue/join", content=b"{").status_code == 403
    large = {"files": ("a.png", b" " * (2**20 + 1))}
    assert ask.post("/gradio_api/upload", files=large).status_code == 413
    # The page stands behind every address, but not in front of the API's.
    assert ask.get("/v1/predict").status_code == 405
    assert ask.get("/healthz").json() == {"status": "ok"}


def test_a_file_of_the_server_is_no_input(address, tables):
    """A path in a request must be of a file that was uploaded, even where it is a picture."""
    ask = httpx.Client(base_url=address, timeout=60)
    config = ask.get("/config").json()
    event = next(entry["id"] for entry in config["dependencies"] if len(entry["outputs"]) == 3)
    content = (tables / "test_0.png").read_bytes()
    (uploaded,) = ask.post("/gradio_api/upload", files={"files": ("a.png", content)}).json()
    meta = {"meta": {"_type": "gradio.FileData"}}
    for path, code in (
        (str(tables / "test_0.png"), 403),
        (f"{uploaded}/../../../../..{tables}/test_0.png", 403),
        ("/dev/zero", 403),
        (uploaded, 200),
    ):
        for more in ({}, meta):
            body = {"data": [{"path": path, **more}, "left"], "fn_index": event, "session_hash": "s"}
            assert ask.post("/gradio_api/queue/join", json=body).status_code == code, path
            # Not past the queue either.
            assert ask.post("/gradio_api/run/predict", json=body).status_code in (403, 404)


def said_by(ask: httpx.Client, data: list) -> str:
    """What the page's event answers."""
    config = ask.get("/config").json()
    event = next(entry["id"] for entry in config["dependencies"] if len(entry["outputs"]) == 3)
    body = {"data": data, "fn_index": event, "session_hash": "t"}
    assert ask.post("/gradio_api/queue/join", json=body).status_code == 200
    with ask.stream("GET", "/gradio_api/queue/data", params={"session_hash": "t"}) as answer:
        return next(line for line in answer.iter_lines() if "process_completed" in line)


def test_the_page_has_the_limits_of_the_api(address, tables):
    ask = httpx.Client(base_url=address, timeout=60)
    content = (tables / "test_0.png").read_bytes()
    good, broken = (
        ask.post("/gradio_api/upload", files={"files": ("a.png", part)}).json()[0]
        for part in (content, content[:40])
    )
    meta = {"meta": {"_type": "gradio.FileData"}}
    assert "longer than 20,000 characters" in said_by(ask, [{"path": good, **meta}, "x" * 20_001])
    assert "wrong type: not an image" in said_by(ask, [{"path": broken, **meta}, "left"])
    filling = Path(good).parent.parent / "filling"  # the folder is one for all tests here
    filling.write_bytes(b" " * (17 * 2**20))
    answer = ask.post("/gradio_api/upload", files={"files": ("a.png", content)})
    filling.unlink()
    assert (answer.status_code, "too many uploads" in answer.text) == (503, True)
    assert ask.post("/gradio_api/upload", files={"files": ("a.png", content)}).status_code == 200


def test_the_page_asks_in_its_caller_s_name(run, tables, monkeypatch):
    limits = ServeSettings(tokens={"ann": "tokenofann", "bob": "tokenofbob"}, grace_seconds=1)
    app = build_app(Predictor(run, device="cpu"), limits)
    engine, callers = app.state.engine, []
    ask_engine = engine.ask

    def noted(served, parse, caller=None):
        callers.append(caller)
        return ask_engine(served, parse, caller)

    monkeypatch.setattr(engine, "ask", noted)
    content = (tables / "test_0.png").read_bytes()
    bob = {"Authorization": "Bearer tokenofbob"}
    with running(app, limits) as (_, address), httpx.Client(base_url=address, timeout=60, headers=bob) as ask:
        (file,) = ask.post("/gradio_api/upload", files={"files": ("a.png", content)}).json()
        said = said_by(ask, [{"path": file, "meta": {"_type": "gradio.FileData"}}, "left"])
    assert '"success":true' in said.replace(" ", "")
    assert callers == ["bob"]


def test_64_clients_by_sockets_are_answered_rightly_and_together(run, tables):
    content = (tables / "test_0.png").read_bytes()
    texts = ["what is left ?", "what is on the right side ?", "left", "right"]
    wanted = Predictor(run, device="cpu").predict(
        [{"picture": str(tables / "test_0.png"), "question": text} for text in texts]
    )
    with serving(Predictor(run, device="cpu"), page=False) as address, ThreadPoolExecutor(64) as pool:
        limits = httpx.Limits(max_connections=64)
        with httpx.Client(base_url=address, timeout=120, limits=limits) as ask:

            def post(place):
                form = {"files": {"image": ("a.png", content), "text": (None, texts[place % 4])}}
                return ask.post("/v1/predict", **form)

            for place, answer in enumerate(pool.map(post, range(192))):
                (found,) = answer.json()["predictions"]
                right = wanted[place % 4]
                assert found["label"] == right.label
                assert found["probabilities"] == pytest.approx(right.probabilities, abs=1e-5)
            large = ask.post("/v1/predict", files={"image": ("a.png", b" " * (2**25 + 1))})
            assert large.status_code == 413
            numbers = dict(line.rsplit(" ", 1) for line in ask.get("/metrics").text.splitlines())
    assert float(numbers["mope_batch_rows_sum"]) == 192
    assert float(numbers["mope_batch_rows_count"]) < 192


def test_pictures_of_any_shape_are_shown():
    entry = InputConfig.model_validate({"kind": "image", "column": "x", "encoder": {}})
    stream = io.BytesIO()
    Image.new("RGB", (3000, 1)).save(stream, "PNG")
    assert attention_picture(stream.getvalue(), numpy.eye(4, dtype="float32"), entry).size == (480, 1)


def test_views(tables):
    assert routing_html([], [], "image") == ""
    html = routing_html([[0.25, 0.75], [1.0, 0.0]], ["1", "2"], "<image>")
    assert html.count("<td") == 4
    assert "&lt;image&gt;" in html
    assert ">75<" in html
    assert ">75<" not in routing_html([[1 / 64] * 63 + [0.75]], ["1"], "image")
    both = routing_html([[0.5, 0.5]] * 2, ["image 1", "text 1"], "image")
    assert "layer text 1" in both
    assert "of each encoder" in both
    content = (tables / "test_0.png").read_bytes()
    entry = {"kind": "image", "column": "x", "encoder": {}}
    whole = attention_picture(content, numpy.eye(4, dtype="float32"), InputConfig.model_validate(entry))
    assert whole.size == (480, 480)
    cut = InputConfig.model_validate({**entry, "size": 14, "resize": 28})
    assert attention_picture(content, numpy.eye(4, dtype="float32"), cut).size == (480, 480)
    pytest.importorskip("pycocotools")
    from mope.media.masks import encode_mask

    mask = numpy.zeros((28, 28), dtype=bool)
    mask[:14] = True
    shown = masked_picture(content, encode_mask(mask))
    assert shown.size == (960, 960)
    assert open_mask(encode_mask(mask), tables).sum() == 14 * 28
