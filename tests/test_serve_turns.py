"""Whose turn it is: runs and callers wait for nobody else's load, whether to be read or for the model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serve_tester import talk

from mope.serve.app import build_app
from mope.serve.batching import Batcher, new_future
from mope.serve.limits import Refusal
from mope.serve.queue import Lane
from mope.serve.reading import TurnPool
from mope.serve.settings import ServeSettings

pytest_plugins = ["serve_fixtures"]

TOKENS = {"ann": "tokenofann", "bob": "tokenofbob"}
ANN, BOB = Lane("run", caller="ann"), Lane("run", caller="bob")


@pytest.fixture
def stop():
    """What holds a thread up; it is set in the end, whatever fails."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def shared(predictor):
    """The app of a run that two callers share."""
    app = build_app(predictor, ServeSettings(page=False, rows=12, queue=12, tokens=TOKENS))
    yield app
    app.state.engine.close()


def put(batcher: Batcher, lane: Lane, samples: list) -> list:
    """Futures of samples that wait."""
    batcher.reserve(len(samples), lane)
    futures = [new_future() for _ in samples]
    for sample, future in zip(samples, futures, strict=True):
        batcher.put(sample, future, lane)
    return futures


def hold_up(served, stop, monkeypatch, count: int) -> tuple[list, threading.Semaphore]:
    """Let so many rows be held up while they are read: the texts of rows that are read, and a semaphore that
    each of them releases first."""
    read, begun, sample = [], threading.Semaphore(0), served.sample

    def slowly(row, place):
        read.append(row["text"])
        begun.release()
        if len(read) <= count:
            assert stop.wait(60)
        return sample(row, place)

    monkeypatch.setattr(served, "sample", slowly)
    return read, begun


def test_callers_of_a_run_have_queues_of_their_own(shared, rows, stop):
    engine, started = shared.state.engine, threading.Event()

    def ask(token, count):
        headers = {"Authorization": f"Bearer {token}"}
        return client.post("/v1/predict", json={"rows": rows[:count]}, headers=headers)

    with talk(shared) as client, ThreadPoolExecutor(2) as pool:
        engine.batcher.call(lambda: (started.set(), stop.wait(60)))
        assert started.wait(60)
        first = pool.submit(ask, "tokenofann", 12)
        while len(engine.batcher) < 12:
            assert not first.done()
        other = pool.submit(ask, "tokenofbob", 3)
        while len(engine.batcher) < 15:
            assert not other.done()
        assert ask("tokenofann", 1).status_code == 503
        stop.set()
        assert first.result(60).status_code == other.result(60).status_code == 200


def test_callers_of_a_run_take_turns(stop):
    batches = []

    def run(samples, alone):
        batches.append(list(samples))
        return samples

    batcher = Batcher(run, size=2, queue=8)
    try:
        batcher.call(lambda: stop.wait(60))
        futures = put(batcher, ANN, ["ann"] * 6) + put(batcher, BOB, ["bob"])
        stop.set()
        assert [future.result(60) for future in futures] == ["ann"] * 6 + ["bob"]
    finally:
        batcher.close()
    assert batches[0] == ["ann", "bob"]


def test_who_asks_many_runs_gets_no_more_than_who_asks_one(stop):
    batches = []

    def run(samples, alone):
        batches.append("".join(samples))
        return samples

    batcher = Batcher(run, size=4, queue=64)
    try:
        batcher.call(lambda: stop.wait(60))
        futures = [one for n in range(6) for one in put(batcher, Lane(f"run{n}", caller="ann"), ["a", "a"])]
        futures += put(batcher, BOB, ["b"] * 6)
        stop.set()
        for future in futures:
            future.result(60)
    finally:
        batcher.close()
    assert batches == ["abab"] * 3 + ["aaaa", "aa"]


def test_a_job_that_raises_whatever_it_is_costs_a_pool_no_thread():
    def panic():
        raise BaseException("a panic of a tokenizer")

    pool = TurnPool(1, "test")
    try:
        failed, other = pool.submit(ANN, panic), pool.submit(ANN, lambda: "done")
        assert other.result(60) == "done"
        assert "a panic" in str(failed.exception(60))
    finally:
        pool.close()


def test_threads_of_a_pool_keep_no_process_alive(stop):
    pool = TurnPool(2, "ends")
    try:
        pool.submit(ANN, lambda: stop.wait(60))
        own = [thread for thread in threading.enumerate() if thread.name.startswith("ends-")]
        assert [thread.daemon for thread in own] == [True, True]
    finally:
        pool.close()
    stop.set()
    for thread in own:
        thread.join(60)
        assert not thread.is_alive()


def test_jobs_of_a_pool_take_turns(stop):
    pool, done = TurnPool(1, "test"), []
    try:
        pool.submit(ANN, lambda: stop.wait(60))
        jobs = [pool.submit(ANN, lambda place=place: done.append(place)) for place in range(5)]
        jobs.append(pool.submit(BOB, lambda: done.append("bob")))
        stop.set()
        assert [job.result(60) for job in jobs] == [None] * 6
    finally:
        pool.close()
    assert done in ([0, "bob", 1, 2, 3, 4], ["bob", 0, 1, 2, 3, 4])


def test_a_row_isn_t_read_behind_all_of_another_caller_s(shared, rows, stop, monkeypatch):
    engine, served = shared.state.engine, shared.state.runs.served
    threads = engine.pool.threads
    read, begun = hold_up(served, stop, monkeypatch, threads)
    many = engine.ask(served, lambda: [{**row, "text": "left"} for row in rows[:12]], "ann")
    for _ in range(threads):
        assert begun.acquire(timeout=60)
    one = engine.ask(served, lambda: [{**rows[0], "text": "right"}], "bob")
    stop.set()
    for future in (*many.result(60), *one.result(60)):
        assert future.result(60).error is None
    assert read.count("left") == 12
    assert read.index("right") <= 2 * threads


def test_what_waits_at_the_end_isn_t_read_any_more(shared, rows, stop, monkeypatch):
    engine, served = shared.state.engine, shared.state.runs.served
    threads = engine.pool.threads
    read, begun = hold_up(served, stop, monkeypatch, threads)
    loading = threading.Semaphore(0)
    for _ in range(engine.loads.threads):
        engine.load(lambda: (loading.release(), stop.wait(60)))
    for _ in range(engine.loads.threads):
        assert loading.acquire(timeout=60)
    load = engine.load(lambda: read.append("a run"))
    asked = engine.ask(served, lambda: list(rows[:12]))
    for _ in range(threads):
        assert begun.acquire(timeout=60)
    late = engine.ask(served, lambda: list(rows[:1]))
    engine.close()
    for waiting in (load, late):
        with pytest.raises(Refusal, match="closing"):
            waiting.result(60)
    stop.set()
    for future in asked.result(60):
        with pytest.raises(Refusal, match="closing"):
            future.result(60)
    assert len(read) == threads
    with pytest.raises(Refusal, match="closing"):
        engine.ask(served, lambda: list(rows[:1])).result(60)


def test_a_model_for_one_thread_keeps_no_other_waiting(stop):
    """Its next batch waits, and is whole; the other lanes' rows run beside it."""
    sizes, running, lock = [], [], threading.Lock()
    one = Lane("one", serial=True)

    def run(samples, alone):
        if samples[0] == "one":
            with lock:
                running.append("one")
                assert running.count("one") == 1
                sizes.append(len(samples))
            assert stop.wait(60)
            with lock:
                running.remove("one")
        return samples

    batcher = Batcher(run, size=8, queue=64, threads=3)
    held = threading.Event()
    try:
        batcher.call(lambda: held.wait(60))
        serial = put(batcher, one, ["one"] * 12)
        others = put(batcher, Lane("other"), ["other"] * 6)
        held.set()
        assert [future.result(60) for future in others] == ["other"] * 6
        assert not any(future.done() for future in serial)
        stop.set()
        assert [future.result(60) for future in serial] == ["one"] * 12
    finally:
        held.set()
        batcher.close()
    assert sizes == [8, 4]
