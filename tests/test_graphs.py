"""Faster passes: torch.compile on a CPU, and of CUDA graphs what takes no GPU; `dev/gpu.py` has the rest."""

import copy
import pickle

import pytest
import torch
from run_tester import enlarged, tiny_run
from test_kept import encoder_of, features, inputs_of, prompts_of, settle

from mope.cli import main
from mope.config import Config
from mope.errors import UserError
from mope.graphs import Cache, Graphs, faster, fill_up, is_recorded, keep_for_graph, rows_of
from mope.predictor import Predictor
from mope.training import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(weights, tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "run"
    config = tiny_run(enlarged(weights, folder.parent), tables, folder, epochs=1)
    train(Config.parse(config), report=lambda line: None)
    return folder


class OnCpu:
    """A graph's stand-in without a GPU: it keeps its inputs and outputs as one does."""

    def __init__(self, function, batch, pool):
        self.function, self.inputs = function, {n: dict(i) for n, i in batch.items()}

    def replay(self, batch):
        return self.function(batch)


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr("mope.graphs._Graph", OnCpu)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return Graphs


def texts(rows, length):
    ids = torch.randint(5, 90, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "present": torch.ones(rows).bool()}


@pytest.mark.parametrize(("rows", "filled"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (33, 64)])
def test_few_shapes_come(rows, filled):
    batch = {"text": texts(rows, 19), "image": {"pixel_values": torch.randn(rows, 3, 4, 4)}}
    found = fill_up(batch, {"text": 77, "image": 0})
    assert rows_of(batch) == rows
    assert rows_of(found) == filled
    assert found["image"]["pixel_values"].shape == (filled, 3, 4, 4)
    assert found["text"]["input_ids"].shape == found["text"]["attention_mask"].shape == (filled, 32)
    assert found["text"]["present"].shape == (filled,)
    assert torch.equal(found["text"]["input_ids"][:rows, :19], batch["text"]["input_ids"])
    assert not found["text"]["attention_mask"][:, 19:].any()
    assert fill_up({"text": texts(2, 75)}, {"text": 77})["text"]["input_ids"].shape[1] == 77
    assert fill_up({"text": texts(2, 19)}, {})["text"]["input_ids"].shape[1] == 19


@pytest.mark.parametrize("name", ["vit", "swin", "bert"])
def test_what_is_filled_up_is_cut_off(graphs, name):
    encoder = encoder_of(name)
    prompts = prompts_of(encoder)
    settle(prompts, encoder)

    def function(batch):
        source = prompts.bind(batch["psi"])
        return [encoder(**batch["main"], prompts=source).pooled, *source.scores]

    passes = graphs(function, {"main": 32})
    batch = {"main": inputs_of(encoder), "psi": features()}
    for recorded in (0, 1, 1):  # from the second time on that its shape comes
        with torch.inference_mode():
            expected = function(batch)
        found = passes(batch)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
        assert len(passes) == recorded
    one = {part: {key: value[:1] for key, value in inputs.items()} for part, inputs in batch.items()}
    assert [len(passes(one)[0]) for _ in range(2)] == [1, 1]
    assert len(passes) == 2


def test_what_cannot_be_recorded_is_said(graphs, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("mope.graphs._Graph", fails)
    passes, batch = graphs(lambda batch: []), {"image": {"pixel_values": torch.randn(2, 3)}}
    passes(batch)
    with pytest.raises(UserError, match=r"can't be recorded as CUDA graphs \(operation not permitted"):
        passes(batch)


def test_only_so_many_graphs_are_held(graphs, monkeypatch):
    monkeypatch.setattr("mope.graphs._MOST", 2)
    recorded = []

    def record(function, batch, pool):
        recorded.append(rows_of(batch))
        return OnCpu(function, batch, pool)

    monkeypatch.setattr("mope.graphs._Graph", record)
    passes = graphs(lambda batch: [batch["a"]["x"]])
    for rows in (1, 1, 2, 2, 1, 4, 4, 1, 2):
        passes({"a": {"x": torch.randn(rows, 2)}})
    assert recorded == [1, 2, 4, 2]  # what was used longest ago goes first
    assert len(passes) == 2


def test_a_cache_forgets_the_oldest_and_copies_begin_empty():
    cache, made = Cache(2), []

    def get(key):
        return cache.get(key, lambda: made.append(key) or key)

    for key in (1, 2, 1, 3, 1, 2):
        assert get(key) == key
    assert made == [1, 2, 3, 1, 2]
    with torch.inference_mode():
        get(2)
    assert made[-1] == 2
    assert len(made) == 6
    assert copy.deepcopy(cache)._entries == {}
    larger = Cache(5)
    for key in (1, 2, 3, 4, 5, 6):
        larger.get(key, lambda key=key: key)
    assert [key for key, _ in larger._entries] == [2, 3, 4, 5, 6]
    assert keep_for_graph(5) == 5
    assert not is_recorded()


def test_graphs_take_a_gpu(run, capsys):
    with pytest.raises(UserError, match="CUDA graphs take a CUDA GPU, and the device is cpu"):
        faster(lambda batch: [], "graphs", CPU, {})
    with pytest.raises(UserError, match="take none, default or graphs"):
        faster(lambda batch: [], "all", CPU, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="CUDA graphs take a CUDA GPU"):
        Predictor(run, device="cpu", compile="graphs")
    assert main(["evaluate", str(run), "--device", "cpu", "--compile", "graphs"]) == 2
    assert "CUDA graphs take a CUDA GPU" in capsys.readouterr().err
    arguments = ["--model", "tiny", "--batch", "2", "--repeats", "1", "--no-training", "--device", "cpu"]
    assert main(["bench", "prompts", *arguments, "--compile", "graphs"]) == 2


def test_a_pickled_predictor_is_compiled_again(run):
    predictor = Predictor(run, device="cpu", compile="default")
    assert pickle.loads(pickle.dumps(predictor)).compile == "default"


def test_what_cannot_be_compiled_is_said(monkeypatch):
    from torch._dynamo.exc import Unsupported

    def broken(function):
        def call(batch):
            raise Unsupported("no\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"can't be compiled here \(no\)"):
        faster(lambda batch: [], "default", CPU, {})({})


@pytest.mark.slow
def test_a_compiled_run_predicts_the_same(run):
    plain = Predictor(run, device="cpu", precision="fp32")
    compiled = Predictor(run, device="cpu", precision="fp32", compile="default")
    rows = plain.table()
    for count in (3, 5):
        some = rows.select(range(count))
        for one, other in zip(plain.predict(some), compiled.predict(some), strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_functions_of_several_models_are_compiled_apart(monkeypatch):
    """PyTorch compiles one piece of code a few times only, then runs it as it is."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = [faster(lambda batch, n=n: [n], "default", CPU, {}) for n in range(2)]
    codes = [call.__closure__[0].cell_contents.__code__ for call in found]
    assert codes[0] is not codes[1]
    assert [call({}) for call in found] == [[0], [1]]
