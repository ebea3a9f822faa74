"""What experts and methods cost: Tab. VIII and Tab. I's Speed, on tiny encoders."""

import json
import time
from typing import Any, ClassVar

import pytest
import torch
from scipy.stats import binom

from mope.bench import runs, serve
from mope.bench.experts import ExpertsSettings, bench_experts
from mope.bench.methods import PAPER, MethodsSettings, bench_methods
from mope.bench.models import MODELS, bare_model, build, hold, random_inputs
from mope.bench.prompts import BenchSettings, bench_prompts
from mope.bench.step import StepSettings, bench_step
from mope.bench.turns import Ratio, Turns, clock_of, ratio_of, take_turns
from mope.cli import main
from mope.methods import METHODS, find_method

CPU = torch.device("cpu")


def test_variants_take_turns_and_the_first_two_rounds_do_not_count():
    order: list[str] = []
    found = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "", CPU)
    assert order == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert {name: len(times) for name, times in found.times.items()} == {"a": 3, "b": 3}


def test_one_thread_s_time_is_the_processor_s(monkeypatch):
    for threads, clock in ((1, "processor"), (2, "wall")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert clock_of(CPU) == clock
        found = take_turns({"asleep": lambda: time.sleep(0.02)}, 1, "", CPU)
        assert (found.medians["asleep"] < 0.01) == (clock == "processor")
    assert clock_of(torch.device("cuda")) == "wall"


def test_benchmarks_of_servers_take_turns_as_well(monkeypatch):
    """Every other turn goes backwards; the ones before the first only warm up."""
    order: list[str] = []

    class Fake:
        readers: ClassVar[dict] = {}

        def predict(self, cells):
            order.append("offline")

        def forward_batch(self, batch):
            order.append("bare")

    monkeypatch.setattr(serve, "all_at_once", lambda requests, port, clients: order.append("served"))
    monkeypatch.setattr(serve, "_ask", lambda connection, body: order.append("served"))
    monkeypatch.setattr(serve, "collate", lambda *_: {})
    monkeypatch.setattr(serve, "_REST", 0)
    fake: Any = Fake()
    serve._parallel(fake, [{}], [b""], 0, 1, rounds=2)
    assert order == ["served", "offline", "offline", "served", "served", "offline"]
    order.clear()
    serve._single(fake, [{}], [b""], 0, repeats=2)
    assert order[-4:] == ["bare", "served", "served", "bare"]
    order.clear()
    monkeypatch.setattr(runs, "all_at_once", lambda requests, port, clients: order.append(requests[0]))
    runs._speed(["one"], ["all"], 0, 1, rounds=2)
    assert order == ["all", "one", "one", "all", "all", "one"]


def test_ratios_are_of_turns_not_of_medians():
    """What makes a turn slow makes all of it slow."""
    turns = Turns({"a": [2.0, 20.0, 2.2, 200.0, 2.4, 24.0], "b": [1.0, 10.0, 1.1, 100.0, 1.2, 12.0]})
    assert turns.ratio("a", "b").median == pytest.approx(2.0)
    assert turns.ratio("a", "b", "b").median == pytest.approx(1.0)
    assert str(turns.ratio("a", "b")) == "2.000 [2.000, 2.000]"


def test_a_ratio_s_interval_is_the_sign_test_s():
    assert ratio_of([1.0, 2.0, 3.0, 4.0, 5.0]) == Ratio(3.0, None)
    assert ratio_of([6.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == Ratio(3.5, (1.0, 6.0))
    for count in (6, 9, 15, 25, 40):
        interval = ratio_of(range(count)).interval
        assert interval is not None
        outside = int(interval[0]) + 1
        assert 2 * binom.cdf(outside - 1, count, 0.5) <= 0.05 < 2 * binom.cdf(outside, count, 0.5)
        assert interval == (outside - 1, count - outside)


def test_the_table_of_experts_adds_up():
    settings = ExpertsSettings("tiny", experts=(16, 4), batch=2, repeats=1, precision="fp32", device="cpu")
    result = bench_experts(settings)
    first, second = result["rows"]
    assert (first["k"], second["k"]) == (4, 16)
    assert first["forward_ratio"] == 1
    for row in result["rows"]:
        k = row["k"]
        assert row["routing_share"] == row["routing_seconds"] / row["forward_seconds"]
        # Two layers of width 32: k experts of 6 tokens, keys of 10, projections of 8 from 32 and 2 from 32.
        numbers = 2 * (k * 6 * 32 + k * 10 + 8 * 32 + 2 * 32)
        assert row["experts_mebibytes"] * 2**20 == 4 * numbers
        assert row["training_mebibytes"] == 4 * row["experts_mebibytes"]
        assert row["memory_share"] == row["training_mebibytes"] / row["step_mebibytes"]
    assert second["paper"] == {"microseconds": 263, "percent": 0.8, "mebibytes": 3.27}


def test_a_method_is_compared_with_bare_encoders_of_its_size():
    result = bench_methods(
        MethodsSettings(("MoPE", "P-TextOnly"), "tiny", 2, 1, "fp32", "cpu"), report=lambda line: None
    )
    mope, text = result["rows"]
    assert (mope["method"], text["method"]) == ("MoPE", "P-TextOnly")
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / row["bare_milliseconds"])  # one turn
    assert mope["paper_ratio"] == pytest.approx(30.47 / 23.73)


@pytest.mark.parametrize(
    ("name", "options"),
    [("tiny", {}), ("tiny-bert", {"start": "quiet"}), ("tiny", {"insertion": "tokens"})],
)
def test_prompts_are_measured_beside_bare_models(name, options):
    settings = BenchSettings(
        name, batch=2, repeats=1, precision="bf16", device="cpu", training=False, **options
    )
    result = bench_prompts(settings)
    assert result["machine"]["device"] == "cpu"
    inference = result["inference"]
    assert set(inference) == {
        *("bare", "bare held", "unprompted", "projecting", "prompted"),
        *("ratio", "ratio_to_bare", "ratio_to_unprompted", "intervals"),
    }
    assert inference["ratio"] == inference["prompted"] / inference["bare held"]
    assert inference["intervals"] == dict.fromkeys(("ratio", "ratio_to_bare", "ratio_to_unprompted"))


def test_the_models_that_are_measured():
    for name in MODELS:
        inputs = random_inputs(name, 2, CPU)
        assert next(iter(inputs.values())).shape[-1] == MODELS[name].size
    held = hold(bare_model("tiny", CPU), torch.bfloat16)
    assert {one.weight.dtype for one in held.modules() if isinstance(one, torch.nn.Linear)} == {
        torch.bfloat16
    }
    assert {one.weight.dtype for one in held.modules() if isinstance(one, torch.nn.LayerNorm)} == {
        torch.float32
    }


def test_a_step_is_compared_with_the_passes_of_its_encoders(capsys):
    result = bench_step(StepSettings("tiny", batch=2, repeats=1, precision="fp32", device="cpu"))
    seconds = result["seconds"]
    bare = [min(seconds[f"{name}, sdpa"], seconds[f"{name}, eager"]) for name in ("image", "text")]
    assert result["ratio"] == pytest.approx(seconds["step"] / sum(bare))
    assert main(["bench", "step", "--model", "tiny", "--batch", "0"]) == 2
    assert "of at least 1" in capsys.readouterr().err
    assert main(["bench", "step", "--model", "tiny", "--batch", "2", "--repeats", "1"]) == 0
    assert "step over the sum of bare passes" in capsys.readouterr().out


def test_the_papers_speeds_are_of_methods_there_are():
    assert set(PAPER) <= set(METHODS)


def test_frozen_parts_are_settled_and_the_rest_learns():
    model = build(find_method("MoPE"), "tiny", "fp32", CPU)
    learned = {name.split(".")[1] for name, one in model.named_parameters() if one.requires_grad}
    assert learned == {"prompts", "encoders", "linear"} or "prompts" in learned
    assert not any(p.requires_grad for p in model.fusion.encoder("image").encoder.parameters())


def test_the_commands(tmp_path, capsys):
    sizes = ["--model", "tiny", "--batch", "2", "--repeats", "1"]
    out = tmp_path / "table8"
    assert main(["bench", "experts", "--experts", "4,8", *sizes, "--out", str(out)]) == 0
    assert "routing us" in capsys.readouterr().out
    assert [row["k"] for row in json.loads((out / "table.json").read_text())["rows"]] == [4, 8]
    assert "| k | forward ms |" in (out / "table.md").read_text()
    assert main(["bench", "methods", "MoPE", *sizes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["method"] == "MoPE"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experts", "--experts", "4,many"], "--experts is '4,many'"),
        (["experts", "--experts", "1", "--model", "tiny"], "at least 2 experts"),
        (["experts", "--method", "SeqFuse", "--model", "tiny"], "SeqFuse has no experts"),
        (["methods", "Mope2", "--model", "tiny"], "There is no method 'Mope2'"),
        (["methods", "MoPE", "--batch", "0"], "at least 1"),
    ],
)
def test_bad_input_is_said_in_a_sentence(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_step_is_measured_beside_the_plain_one(capsys):
    words = ["bench", "step", "--model", "tiny", "--batch", "2", "--repeats", "1", "--compile", "--json"]
    assert main([*words, "--precision", "fp32", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert found["compiled"]["ratio"] == pytest.approx(seconds["compiled step"] / seconds["step"])
