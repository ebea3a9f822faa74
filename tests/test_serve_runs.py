"""Several runs behind one server: their rows share passes, and they come and go."""

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from many_runs import SERVED
from serve_tester import predict, talk

from mope.cli import main
from mope.data.table import open_table
from mope.errors import UserError
from mope.predictor import Predictor
from mope.run import WEIGHTS, add_metrics
from mope.serve.app import build_runs_app
from mope.serve.limits import Refusal
from mope.serve.queue import FairQueue, Lane
from mope.serve.runs import Runs
from mope.serve.settings import ServeSettings, read_tokens
from mope.serve.sources import find_runs

pytest_plugins = ["runs_fixtures", "serve_fixtures"]


@pytest.fixture
def app(runs):
    app = build_runs_app(runs, ServeSettings(rows=24, queue=24))
    yield app
    app.state.engine.close()


@pytest.fixture
def client(app):
    with talk(app) as client:
        yield client


def require_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other.label
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-5)


def alone(run, tables, count):
    return Predictor(run, device="cpu").predict(open_table(tables / "test.csv"))[:count]


def test_rows_of_all_runs_at_once(client, made, rows, tables):
    expected = {name: alone(made[name], tables, 4) for name in SERVED}
    with ThreadPoolExecutor(8) as pool:
        wanted = [name for _ in range(4) for name in SERVED]
        found = list(pool.map(lambda name: predict(client, name, rows[:4]), wanted))
    for name, one in zip(wanted, found, strict=True):
        require_same(one, expected[name])


def test_runs_are_listed(client):
    listed = {run["name"]: run for run in client.get("/v1/runs").json()["runs"]}
    assert list(listed) == sorted(SERVED)
    assert listed["mope"]["shares_passes"]
    assert listed["mope"]["inputs"]["image"] == {"kind": "image", "may_be_left_out": False}
    assert listed["words"]["inputs"].keys() == {"text"}
    assert "tuning: full" in listed["full"]["alone_because"]
    assert "the fusion 'pmf' works among" in listed["pmf"]["alone_because"]
    assert not listed["mope"]["in_memory"]
    assert client.get("/v1/runs/mope").json() == listed["mope"]
    page = client.get("/")
    assert page.status_code == 200
    assert "<select id=" in page.text
    assert "http" not in page.text.replace("https", "http").replace("http-equiv", "")


@pytest.mark.parametrize(
    ("method", "path", "code", "text"),
    [
        ("post", "/v1/runs/none/predict", 404, "There is no run 'none': /v1/runs lists them."),
        ("post", "/v1/predict", 404, "ask one at /v1/runs/NAME/predict"),
        ("get", "/v1/runs/none", 404, "There is no run 'none'"),
        ("get", "/v1/runs/..", 404, ""),
        ("get", "/v1/runs/runs%00", 404, "There is no run"),
        ("post", "/v1/runs/words/predict", 422, "but the run's inputs are text"),
        ("get", "/v1/runs/mope/predict", 405, "Only POST"),
        ("post", "/v1/runs/mope", 405, "Only GET"),
    ],
)
def test_wrong_requests_are_said(client, rows, method, path, code, text):
    body = {"json": {"rows": rows[:1]}} if method == "post" else {}
    answer = getattr(client, method)(path, **body)
    assert answer.status_code == code
    assert text in answer.json()["error"]


def test_runs_come_and_go(client, runs, folder, made, rows, tables, said):
    predict(client, "mope", rows[:2])
    assert client.get("/v1/runs/mope").json()["in_memory"]
    # Replaced, as a training replaces it: each file at once.
    shutil.copy(made["longer"] / "config.yaml", folder / "draft")
    (folder / "draft").replace(folder / "mope" / "config.yaml")
    runs.look()
    assert "the old one stays" in said[-1]  # its weights are still the old ones
    require_same(predict(client, "mope", rows[:2]), alone(made["mope"], tables, 2))
    shutil.copy(made["longer"] / WEIGHTS, folder / "draft")
    (folder / "draft").replace(folder / "mope" / WEIGHTS)
    runs.look()
    assert said[-1] == "The run 'mope' was replaced."
    require_same(predict(client, "mope", rows[:2]), alone(made["longer"], tables, 2))
    shutil.rmtree(folder / "mope")
    runs.look()
    assert said[-1] == "The run 'mope' is gone."
    assert client.post("/v1/runs/mope/predict", json={"rows": rows[:1]}).status_code == 404
    shutil.copytree(made["static"], folder / "new")
    require_same(predict(client, "new", rows[:2]), alone(made["static"], tables, 2))


def test_a_request_ends_on_the_version_it_began_with(app, client, runs, folder, made, rows, tables):
    engine, stop, started = app.state.engine, threading.Event(), threading.Event()
    predict(client, "mope", rows[:1])
    held = engine.batcher.call(lambda: (started.set(), stop.wait(60)))
    assert started.wait(60)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(predict, client, "mope", rows[:3])
        while len(engine.batcher) < 3:
            assert not begun.done()
        for name in ("config.yaml", WEIGHTS):
            shutil.copy(made["longer"] / name, folder / "mope" / name)
        runs.look()
        stop.set()
        require_same(begun.result(60), alone(made["mope"], tables, 3))
    assert held.result(60)
    require_same(predict(client, "mope", rows[:3]), alone(made["longer"], tables, 3))


def test_the_least_recently_used_is_dropped(folder, made, rows, tables):
    runs = Runs({}, [folder], ServeSettings(), device="cpu", most=2)
    first = runs.get("mope")
    assert runs.get("static") is not runs.get("mope")
    runs.get("words")
    assert runs.get("mope") is first
    assert [runs.describe(name)["in_memory"] for name in ("mope", "static", "words")] == [True, False, True]


def test_a_run_that_can_t_be_read_takes_no_other_s_place(folder):
    runs = Runs({}, [folder], ServeSettings(), device="cpu", most=1)
    first = runs.get("mope")
    (folder / "static" / "config.yaml").write_text("task: [")
    with pytest.raises(Refusal):
        runs.get("static")
    assert runs.held("mope") is first


def test_a_run_that_can_t_be_loaded_costs_the_others_nothing(client, folder, rows, said):
    (folder / "concat" / WEIGHTS).write_bytes(b"nothing")
    for _ in range(3):  # it is tried once, and said once
        answer = client.post("/v1/runs/concat/predict", json={"rows": rows[:1]})
    assert answer.status_code == 503
    assert len(said) == 1
    assert "the server's log says why" in answer.json()["error"]
    assert str(folder) not in answer.json()["error"]
    assert str(folder) in said[-1]
    predict(client, "mope", rows[:2])


def test_a_run_that_can_t_be_read_costs_the_others_nothing(client, runs, folder, rows, said):
    predict(client, "static", rows[:1])
    config = folder / "static" / "config.yaml"
    config.write_text(config.read_text().replace("labels:\n  -", "labels: 3\n  #"))
    (folder / "longer" / "config.yaml").write_text("{")
    runs.look()
    assert "the old one stays" in said[-1]
    predict(client, "static", rows[:1])
    listed = client.get("/v1/runs")
    assert listed.status_code == 200
    found = {run["name"]: run.get("error") for run in listed.json()["runs"]}
    assert found.pop("longer") == "It can't be read: the server's log says why."
    assert found["mope"] is None
    shutil.rmtree(folder / "static")
    runs.look()
    assert said[-1] == "The run 'static' is gone."


def test_what_was_evaluated_is_listed(client, folder):
    assert client.get("/v1/runs/mope").json()["metrics"] == {}
    add_metrics(folder / "mope", "test", {"accuracy": 0.5, "rows": 20})
    assert client.get("/v1/runs/mope").json()["metrics"]["test"]["accuracy"] == 0.5


def test_a_model_for_one_thread_has_lanes_that_say_so(folder):
    runs = Runs({}, [folder], ServeSettings(), device="cpu")
    assert runs.get("pmf").lane.serial
    assert not runs.get("mope").lane.serial


def test_runs_are_answered_while_another_is_loaded(app, client, runs, rows, monkeypatch):
    predict(client, "mope", rows[:1])
    stop, load = threading.Event(), runs._load

    def slowly(*arguments):
        assert stop.wait(60)
        return load(*arguments)

    monkeypatch.setattr(runs, "_load", slowly)
    try:
        with ThreadPoolExecutor(12) as pool:
            cold = [pool.submit(predict, client, "static", rows[:1]) for _ in range(12)]
            assert len(predict(client, "mope", rows[:2])) == 2
            assert not any(one.done() for one in cold)
            stop.set()
            assert all(len(one.result(60)) == 1 for one in cold)
    finally:
        stop.set()


def test_one_run_s_load_leaves_room_for_others(app, client, rows):
    engine, stop, started = app.state.engine, threading.Event(), threading.Event()
    predict(client, "mope", rows[:1])
    predict(client, "static", rows[:1])
    engine.batcher.call(lambda: (started.set(), stop.wait(60)))
    assert started.wait(60)
    with ThreadPoolExecutor(2) as pool:
        full = pool.submit(predict, client, "mope", rows)
        while len(engine.batcher) < len(rows):
            assert not full.done()
        answer = client.post("/v1/runs/mope/predict", json={"rows": rows[:5]})
        assert answer.status_code == 503
        other = pool.submit(predict, client, "static", rows[:5])
        while len(engine.batcher) < len(rows) + 5:
            assert not other.done()
        stop.set()
        assert len(full.result(60)) == len(rows)
        assert len(other.result(60)) == 5


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=40),
    st.lists(st.integers(1, 5), max_size=60),
)
def test_lanes_are_taken_in_turn(items, counts):
    """Nothing is lost or turned round; a batch is of one group, and shares it among the lanes that wait."""
    queue: FairQueue = FairQueue()
    for place, (name, group) in enumerate(items):
        queue.append(Lane(str(name), group), (name, group, place))
    waiting, found = Counter(items), []
    for count in counts:
        some = queue.take(count)
        assert len(some) == min(
            count, sum(n for (_, group), n in waiting.items() if some and group == some[0][1])
        )
        taken = Counter(item[:2] for item in some)
        waiting -= taken
        if some:
            left = [lane for lane in waiting if lane[1] == some[0][1]]
            assert all(taken[lane] >= max(taken.values()) - 1 for lane in left)
        else:
            assert not len(queue)
        found += some
    found += queue.clear()
    assert sorted(place for *_, place in found) == list(range(len(items)))
    for lane in {item[:2] for item in found}:
        places = [item[2] for item in found if item[:2] == lane]
        assert places == sorted(places)


def test_what_isn_t_a_run_is_said(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="There is no run in nowhere"):
        find_runs(["nowhere"])
    with pytest.raises(UserError, match="Two runs are called 'mope'"):
        find_runs([str(folder / "mope"), str(shutil.copytree(folder / "mope", tmp_path / "b" / "mope"))])
    (tmp_path / "empty").mkdir()
    assert main(["serve", str(tmp_path / "empty"), "--port", "0"]) == 2
    assert "There is no finished run in" in capsys.readouterr().err
    with pytest.raises(Refusal):
        Runs({}, [folder], ServeSettings(), device="cpu").get("none")
    with pytest.raises(UserError, match="--max-runs is 0"):
        Runs({}, [folder], ServeSettings(), most=0)


def test_each_caller_has_a_token_and_a_share(runs, rows, tmp_path):
    (tmp_path / "tokens").write_text("# who may ask\nann tokenofann\n\nbob tokenofbob  # till spring\n")
    limits = ServeSettings(page=False, rows=8, queue=8, tokens=read_tokens(str(tmp_path / "tokens")))
    app = build_runs_app(runs, limits)
    engine, stop, started = app.state.engine, threading.Event(), threading.Event()

    def ask(token, name, count):
        headers = {"Authorization": f"Bearer {token}"}
        return client.post(f"/v1/runs/{name}/predict", json={"rows": rows[:count]}, headers=headers)

    try:
        with talk(app) as client, ThreadPoolExecutor(2) as pool:
            assert client.get("/v1/runs").status_code == 401
            assert ask("tokenofeve", "mope", 1).status_code == 401
            for name in ("mope", "static", "longer"):
                assert ask("tokenofann", name, 1).status_code == 200
            engine.batcher.call(lambda: (started.set(), stop.wait(60)))
            assert started.wait(60)
            first = pool.submit(ask, "tokenofann", "mope", 6)
            while len(engine.batcher) < 6:
                assert not first.done()
            refused = ask("tokenofann", "static", 3)
            assert refused.status_code == 503
            assert "Your token has 8 rows in the works at most" in refused.json()["error"]
            other = pool.submit(ask, "tokenofbob", "static", 3)
            while len(engine.batcher) < 9:
                assert not other.done()
            stop.set()
            assert first.result(60).status_code == other.result(60).status_code == 200
            assert ask("tokenofann", "static", 8).status_code == 200
    finally:
        stop.set()
        engine.close()


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("ann", "line 1: a line is NAME TOKEN, each name once"),
        ("ann a\nann b", "line 2: a line is NAME TOKEN, each name once"),
        ("# nobody", "has no tokens"),
        ("ann a\nbob a", "Two callers have the same token"),
        ("ann ä", "letters that headers don't carry"),
    ],
)
def test_wrong_tokens_are_said(tmp_path, lines, text):
    (tmp_path / "tokens").write_text(lines)
    with pytest.raises(UserError, match=text):
        ServeSettings(tokens=read_tokens(str(tmp_path / "tokens")))
    with pytest.raises(UserError, match="Can't read the tokens in"):
        read_tokens(str(tmp_path / "none"))
