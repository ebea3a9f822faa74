"""A run behind HTTP: right answers, however many ask, and one sentence for whoever asks wrongly."""

import base64
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from serve_tester import same

from mope.cli import build_parser, main
from mope.cli.serve import settings_of
from mope.serve.app import build_app
from mope.serve.batching import Batcher, new_future
from mope.serve.limits import Refusal
from mope.serve.settings import ServeSettings

pytest_plugins = ["serve_fixtures"]


def test_the_command_serves_as_the_settings_do(monkeypatch):
    """The command line names the defaults again, since reading them would load PyTorch for --help."""
    monkeypatch.delenv("MOPE_TOKEN", raising=False)
    assert settings_of(build_parser().parse_args(["serve", "RUN"])) == ServeSettings()


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
    sent[2]["text"] = "\x00"
    sent[3]["image"] = ""
    found = client.post("/v1/predict", params={"routing": True}, json={"rows": sent}).json()["predictions"]
    assert same(found[0], right[0])
    assert same(found[4], right[4])
    assert [found[n]["error"].split(":")[0] for n in (1, 2, 3)] == ["image", "text", "image"]
    for n in (1, 2, 3):
        assert found[n]["label"] is found[n]["probabilities"] is found[n]["routing"] is None


def test_outputs_that_are_no_numbers_are_errors_of_their_rows(client, rows, predictor, monkeypatch):
    """JSON has no NaN: one of them would cost the whole request its answer."""
    forward = predictor.forward_batch

    def broken(batch):
        logits, scores = forward(batch)
        return torch.full_like(logits, float("nan")), scores

    monkeypatch.setattr(predictor, "forward_batch", broken)
    answer = client.post("/v1/predict", params={"routing": True}, json={"rows": rows[:2]})
    assert answer.status_code == 200
    for found in answer.json()["predictions"]:
        assert "no finite number" in found["error"]
        assert found["label"] is found["probabilities"] is found["routing"] is None


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


def test_rows_that_come_while_a_batch_runs_are_run_together():
    sizes, release = [], threading.Event()

    def run(samples, alone):
        sizes.append(len(samples))
        return [2 * sample for sample in samples]

    batcher = Batcher(run, size=8, queue=64)
    batcher.call(release.wait)
    futures = [new_future() for _ in range(12)]
    batcher.reserve(12)
    for number, future in enumerate(futures):
        batcher.put(number, future)
    release.set()
    assert [future.result(timeout=60) for future in futures] == [2 * number for number in range(12)]
    assert sizes == [8, 4]
    batcher.close()


def test_threads_share_what_waits_and_a_call_has_the_model_to_itself():
    running, seen, lock, release = 0, [], threading.Lock(), threading.Event()

    def run(samples, alone):
        nonlocal running
        with lock:
            running += 1
            seen.append((len(samples), running, alone))
        time.sleep(0.05)
        with lock:
            running -= 1
        return samples

    batcher = Batcher(run, size=8, queue=64, threads=3)
    batcher.call(release.wait)
    futures = [new_future() for _ in range(15)]
    batcher.reserve(15)
    for number, future in enumerate(futures):
        batcher.put(number, future)
    release.set()
    called = batcher.call(lambda: running)
    assert [future.result(timeout=60) for future in futures] == list(range(15))
    assert called.result(timeout=60) == 0
    assert sum(size for size, _, _ in seen) == 15
    assert max(size for size, _, _ in seen) == 5  # of fifteen for three threads
    assert max(beside for _, beside, _ in seen) > 1
    assert not any(alone for size, beside, alone in seen if size > 1 and beside > 1)
    batcher.reserve(1)
    last = new_future()
    batcher.put("one", last)
    assert last.result(timeout=60) == "one"
    assert seen[-1] == (1, 1, True)
    batcher.close()


def test_what_waits_is_counted_between_changes():
    """Else a lane that comes or goes meanwhile ends the count, and `/metrics` with it."""
    batcher = Batcher(lambda samples, alone: samples, size=8, queue=64)
    batcher.reserve(3)
    with ThreadPoolExecutor(1) as pool:
        with batcher._ready:
            count = pool.submit(len, batcher)
            time.sleep(0.1)
            assert not count.done()
        assert count.result(timeout=60) == 3
    batcher.close()


def test_a_batch_does_not_wait_long_for_rows_that_were_announced():
    batcher = Batcher(lambda samples, alone: samples, size=8, queue=64)
    batcher.announce(1)  # and never read
    batcher.reserve(1)
    future = new_future()
    started = time.monotonic()
    batcher.put("row", future)
    assert future.result(timeout=60) == "row"
    assert time.monotonic() - started < 5  # 10 ms by design; a batcher that waits for the row waits forever
    batcher.close()


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


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_schema_is_kept(predictor, mode):
    """Schemathesis makes requests from the schema, right ones and wrong ones, and checks the answers.

    It starts and ends the app with every request.
    """
    app = build_app(predictor, ServeSettings(page=False, rows=4))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    operations = [found.ok() for found in schema.get_all_operations()]
    (operation,) = [one for one in operations if one.path == "/v1/predict"]
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
    def run(samples, alone):
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


@pytest.mark.slow
def test_bench_serve(served_run, capsys):
    arguments = ["bench", "serve", str(served_run), "--repeats", "1", "--clients", "4", "--rows", "8"]
    assert main([*arguments, "--rounds", "1", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["single"]["ratio"] == result["single"]["served"] / result["single"]["bare"]
    assert result["parallel"]["ratio"] == result["parallel"]["served"] / result["parallel"]["offline"]
    assert main([*arguments, "--rounds", "0"]) == 2
