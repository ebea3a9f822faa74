"""Where a server's runs are: names, watching, loads that take turns, and the command itself."""

import json
import shutil
import threading
import time

import httpx
import pytest
import yaml
from many_runs import SERVED
from serve_tester import command, predict, running, talk

from mope.cli import main
from mope.config import Config
from mope.errors import UserError
from mope.files import read_yaml
from mope.predictor import Predictor
from mope.run import CONFIG, METRICS, WEIGHTS
from mope.serve.app import build_app, build_runs_app
from mope.serve.engine import Engine
from mope.serve.limits import Refusal
from mope.serve.metrics import Metrics
from mope.serve.runs import Runs
from mope.serve.served import alone_because
from mope.serve.settings import ServeSettings
from mope.serve.sources import Sources, find_runs

pytest_plugins = ["runs_fixtures", "serve_fixtures"]


def until(found, seconds=30):
    """Wait for what comes within a second or two."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_watches_its_folder(runs, folder, made, said, monkeypatch):
    monkeypatch.setattr("mope.serve.runs._SECONDS", 0.05)
    limits = ServeSettings(grace_seconds=1)
    with (
        running(build_runs_app(runs, limits), limits) as (_, address),
        httpx.Client(base_url=address) as client,
    ):
        client.post("/v1/runs/words/predict", json={"rows": [{"text": "red"}]})
        for name in (CONFIG, WEIGHTS):
            shutil.copy(made["words"] / name, folder / "words" / name)
        until(lambda: "The run 'words' was replaced." in said)
        shutil.rmtree(folder / "words")
        until(lambda: said[-1] == "The run 'words' is gone.")
        assert client.get("/v1/runs/words").status_code == 404


def test_two_runs_of_one_name_are_refused_and_said(folder, tmp_path, said):
    other = tmp_path / "other"
    shutil.copytree(folder / "mope", other / "mope")
    with pytest.raises(
        UserError, match=r"Two runs are called 'mope', .*runs/mope and .*other/mope: give one"
    ):
        Sources({}, [folder, other], said.append)
    assert Sources({"mope": folder / "mope"}, [folder], said.append).find().keys() == {*SERVED}
    shutil.move(other / "mope", tmp_path / "aside")
    runs = Runs({}, [other, folder], ServeSettings(), device="cpu", report=said.append)
    runs.get("mope")
    shutil.move(tmp_path / "aside", other / "mope")  # one that comes later doesn't take the other's name
    for _ in range(2):
        runs.look()
    assert said == [f"The run {other / 'mope'} isn't served: {folder / 'mope'} has its name."]
    shutil.rmtree(folder / "mope")
    runs.look()
    assert said[1:] == ["The run 'mope' is gone."]
    assert runs.held("mope") is None
    assert runs.get("mope").predictor.run == other / "mope"


def test_a_run_whose_weights_are_damaged_takes_no_other_s_place(folder):
    runs = Runs({}, [folder], ServeSettings(), device="cpu", most=1)
    first = runs.get("mope")
    (folder / "static" / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(Refusal):
        runs.get("static")
    assert runs.held("mope") is first


def _change(folder, settings):
    """Put other settings into a run."""
    content = read_yaml(folder / CONFIG, "config", "")
    for key, value in settings.items():
        *sections, name = key.split(".")
        part = content
        for section in sections:
            part = part[section]
        part[name] = value
    (folder / CONFIG).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def test_encoders_that_come_from_a_hub_keep_nobody_waiting(folder, made, monkeypatch, said):
    coming, there = threading.Event(), threading.Event()

    def slowly(inputs):
        if inputs:
            coming.set()
            assert there.wait(60)

    def refused(name):
        try:
            runs.require(name)
        except Refusal as refusal:
            return str(refusal)
        return ""

    for place in ("remote", "runs"):
        monkeypatch.setattr(f"mope.serve.{place}.fetch", slowly)
    monkeypatch.setattr(
        "mope.serve.runs.Predictor", lambda run, **options: Predictor(made[run.name], **options)
    )
    monkeypatch.setattr("mope.serve.runs._SECONDS", 0.05)
    _change(folder / "static", {"inputs.text.encoder.weights": "owner/words"})
    runs = Runs({}, [folder], ServeSettings(), device="cpu", report=said.append)
    runs.open()
    try:
        assert "its encoders are still to come from the hub" in refused("static")
        assert coming.wait(60)
        assert refused("static")  # at once
        for name in ("words", "longer"):
            assert not refused(name)
            runs.get(name)
        _change(folder / "words", {"inputs.text.encoder.weights": "owner/words"})
        shutil.rmtree(folder / "longer")  # who looks at the folder isn't kept waiting either
        until(lambda: "The run 'longer' is gone." in said)
        assert "The run 'words' was replaced." not in said
        there.set()
        until(lambda: not refused("static"))
        assert runs.get("static") is runs.held("static")
        until(lambda: "The run 'words' was replaced." in said)
    finally:
        there.set()
        runs.close()


def test_a_run_that_can_t_be_loaded_takes_no_other_s_place(folder):
    _change(folder / "static", {"inputs.text.encoder.weights": str(folder / "nowhere")})
    runs = Runs({}, [folder], ServeSettings(), device="cpu", most=1, report=lambda line: None)
    first = runs.get("mope")
    with pytest.raises(Refusal):
        runs.get("static")
    assert runs.held("mope") is first


def test_a_named_run_that_isn_t_one_is_said_at_the_start(folder):
    (folder / "static" / CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="static"):
        Sources({"mope": folder / "mope", "static": folder / "static"}, [], print)
    with pytest.raises(UserError, match="A run on the hub is hub:OWNER/NAME, not 'hub:bad'"):
        Sources({"mope": folder / "mope", "bad": "hub:bad"}, [], print)


def test_damaged_metrics_cost_nothing_but_themselves(folder, made, tmp_path):
    (folder / "mope" / METRICS).write_text("{")
    described = Runs({}, [folder], ServeSettings(), device="cpu").describe("mope")
    assert described["metrics"] == {}
    assert described["metrics_error"] == "They can't be read: mope evaluate says why."
    app = build_app(Predictor(folder / "mope", device="cpu"), ServeSettings(page=False))
    app.state.engine.close()


def test_runs_say_whose_rows_go_with_theirs(runs):
    for name in ("mope", "static", "words", "full"):
        runs.get(name)
    found = {one["name"]: one["group"] for one in runs.describe_all()}
    assert found["mope"] == found["static"]
    assert found["longer"] is None  # not in memory
    assert len({found[name] for name in ("mope", "words", "full")}) == 3


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"encoder.tuning": "full"}, "tuning: full"),
        ({"encoder.weights": None, "encoder.architecture": {"model_type": "bert"}}, "no pre-trained weights"),
        ({"encoder.projection": 8}, "a projection that is trained"),
    ],
)
def test_why_a_run_s_rows_go_alone_is_said(folder, settings, why):
    content = read_yaml(folder / "mope" / CONFIG, "config", "")
    del content["run"]
    config = Config.parse(content)
    entry = config.inputs["text"]
    encoder = entry.encoder.model_copy(
        update={name.partition(".")[2]: value for name, value in settings.items()}
    )
    config.inputs["text"] = entry.model_copy(update={"encoder": encoder})
    assert alone_because(config) == f"the encoder of 'text' is the run's own ({why})"


def test_loads_take_turns_by_caller():
    """Whoever asks for many runs at once keeps nobody else waiting for all of them."""
    engine, go, begun = Engine(ServeSettings(), Metrics()), threading.Event(), []

    def load(name):
        begun.append(name)
        assert go.wait(30)

    try:
        futures = [engine.load(lambda n=n: load(f"ann {n}"), "ann") for n in range(12)]
        futures.append(engine.load(lambda: load("bob"), "bob"))
        go.set()
        for future in futures:
            future.result(30)
        assert begun.index("bob") <= 5  # four at a time, then his turn
    finally:
        engine.close()


def test_a_named_run_that_is_replaced_stays(folder, made, said):
    """What a command line names are words, not paths."""
    runs = Runs(
        *find_runs([str(folder / "mope"), str(folder / "words")]), ServeSettings(), report=said.append
    )
    runs.get("words")
    for name in (CONFIG, WEIGHTS):
        shutil.copy(made["words"] / name, folder / "words" / name)
    for _ in range(2):
        runs.look()
    assert said == ["The run 'words' was replaced."]
    assert runs.held("words") is not None


def test_a_wrong_name_is_said_while_others_are_loaded(runs, rows, monkeypatch):
    stop, begun, load = threading.Event(), threading.Semaphore(0), runs.get
    app = build_runs_app(runs, ServeSettings())

    def slowly(name):
        begun.release()
        assert stop.wait(60)
        return load(name)

    monkeypatch.setattr(runs, "get", slowly)
    try:
        with talk(app) as client:
            names = ("mope", "static", "longer", "concat", "words")
            threads = [threading.Thread(target=predict, args=(client, name, rows[:1])) for name in names]
            for thread in threads:
                thread.start()
            for _ in range(app.state.engine.loads.threads):
                assert begun.acquire(timeout=60)
            assert client.post("/v1/runs/none/predict", json={"rows": rows[:1]}).status_code == 404
            stop.set()
            for thread in threads:
                thread.join(60)
    finally:
        stop.set()
        app.state.engine.close()


def test_a_hub_that_can_t_be_reached_keeps_nobody_waiting(made, rows, monkeypatch):
    reached = threading.Event()

    def find(source):
        assert reached.wait(60)
        return made["mope"]

    monkeypatch.setattr("mope.serve.sources.find_run", find)
    runs = Runs({"far": "hub:me/far", "near": made["static"]}, [], ServeSettings(), device="cpu")
    app = build_runs_app(runs, ServeSettings())
    runs.open()
    try:
        with talk(app) as client:
            for _ in range(app.state.engine.loads.threads + 1):
                answer = client.post("/v1/runs/far/predict", json={"rows": rows[:1]})
                assert answer.status_code == 503
                assert answer.json()["error"] == "The run 'far': It is being fetched from the hub."
                assert answer.headers["retry-after"] == "5"
            assert len(predict(client, "near", rows[:1])) == 1
            listed = {one["name"]: one for one in client.get("/v1/runs").json()["runs"]}
            assert listed["far"]["error"] == "It is being fetched from the hub."
            assert listed["near"]["in_memory"]
            reached.set()
            until(lambda: client.get("/v1/runs/far").json().get("labels"))
            assert len(predict(client, "far", rows[:1])) == 1
    finally:
        reached.set()
        runs.close()
        app.state.engine.close()


@pytest.mark.slow
def test_the_command_serves_a_folder_of_runs(folder, rows):
    with command(folder) as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        assert [one["name"] for one in client.get("/v1/runs").json()["runs"]] == sorted(SERVED)
        for name in ("mope", "static"):
            answer = client.post(f"/v1/runs/{name}/predict", json={"rows": rows[:2]}).json()
            assert all(one["error"] is None for one in answer["predictions"])


@pytest.mark.slow
def test_bench_serve_of_several_runs(folder, capsys):
    words = ["bench", "serve", str(folder / "mope"), "--runs", "3", "--clients", "2", "--rows", "8"]
    assert main([*words, "--repeats", "1", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == 3
    assert found["memory"]["ratio"] > 0.5
    assert found["rows_per_second"]["ratio"] > 0
