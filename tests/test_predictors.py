"""Several runs over one copy of their encoders, and rows of all of them in common passes."""

import gc
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_runs import RUNS, make_run
from run_tester import tiny_run
from transformers import SwinConfig, SwinModel

import mope.predictors as module
from mope import Predictor, Predictors
from mope.config import Config
from mope.data.dataset import collate
from mope.data.table import open_table
from mope.device import Precision, arithmetic, has_fast_bf16
from mope.encoders.pool import EncoderPool, own_because
from mope.errors import UserError
from mope.fusion.base import taking_turns
from mope.fusion.together import _by_length
from mope.predictors import Share, predict_together
from mope.serve.served import Served
from mope.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def runs(weights, tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(name, weights, tables, folder) for name in RUNS}


@pytest.fixture(scope="module")
def predictors(runs):
    return Predictors(list(runs.values()), device="cpu", batch_size=64)


@pytest.fixture(scope="module")
def rows(tables):
    found = [{**row, "picture": str(tables / row["picture"])} for row in open_table(tables / "test.csv")]
    found[2]["question"] = "left"  # a short one beside long ones
    return found


def encoders_of(predictors):
    return {
        id(predictor.model.fusion.encoder(name).encoder)
        for predictor in predictors.runs.values()
        for name in predictor.model.fusion.encoders
    }


def require_same(found, expected):
    assert found.label == expected.label
    assert found.error == expected.error
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    for one, other in zip(found.routing, expected.routing, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_runs_share_their_frozen_encoders(predictors):
    assert len(encoders_of(predictors)) == 3  # image, text, and the one that was tuned in full
    assert predictors["mope"].model.fusion.prompts is not predictors["static"].model.fusion.prompts


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_s_answer_doesn_t_depend_on_other_runs(predictors, rows, data):
    """Mixtures of runs, kinds of prompts, lengths of texts and inputs that aren't there."""
    wanted = {}
    for name in data.draw(st.lists(st.sampled_from(list(RUNS)), min_size=1, unique=True)):
        places = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
        wanted[name] = [dict(rows[place]) for place in places]
        for row in wanted[name]:
            if name == "may_miss" and data.draw(st.booleans()):
                row[data.draw(st.sampled_from(["picture", "question"]))] = None
    found = predictors.predict(wanted)
    assert list(found) == list(wanted)
    for name, some in wanted.items():
        for row, prediction in zip(some, found[name], strict=True):
            require_same(prediction, predictors[name].predict(row)[0])


def test_one_pass_serves_all_runs(predictors, rows, monkeypatch):
    passes = []
    for predictor in predictors.runs.values():
        for name in predictor.model.fusion.encoders:
            encoder = predictor.model.fusion.encoder(name).encoder
            if not hasattr(encoder, "counted"):
                encoder.counted = True
                encoder.register_forward_hook(lambda module, *_: passes.append(module.kind))
    predictors.predict(dict.fromkeys(("mope", "longer", "static", "sees_all", "may_miss"), rows[:2]))
    assert sorted(passes) == ["image", "text"]


def test_precisions_that_are_the_same_arithmetic_share_a_pass(runs, rows, monkeypatch):
    together, counts = module.fuse_together, []

    def counted(fusions, batches):
        counts.append(len(fusions))
        return together(fusions, batches)

    monkeypatch.setattr(module, "fuse_together", counted)
    same: Precision = "bf16" if has_fast_bf16(torch.device("cpu")) else "fp32"
    pair = [Predictor(runs["mope"], device="cpu", precision=precision) for precision in ("auto", same)]
    assert pair[0].arithmetic == pair[1].arithmetic
    lanes = [Served("run", predictor, ServeSettings()).lane for predictor in pair]
    assert lanes[0].group == lanes[1].group
    shares = []
    for predictor in pair:
        sample = {name: r.sample(r.cell(rows[0]), Path()) for name, r in predictor.readers.items()}
        shares.append(Share(predictor, collate([sample], predictor.readers, None)))
    one, other = predict_together(shares)
    require_same(one[0], other[0])
    assert counts == [2]
    assert arithmetic("fp16", torch.device("cuda")) is torch.float16


def test_bad_rows_and_abstaining_are_each_run_s_own(predictors, rows):
    bad = {**rows[0], "picture": "nowhere.png"}
    found = predictors.predict({"mope": [rows[0], bad], "static": [bad]}, abstain_below=1.1)
    assert "nowhere.png" in found["mope"][1].error
    assert found["static"][0].error is not None
    assert found["mope"][0].label is None
    assert found["mope"][0].probabilities
    assert predictors.predict({"mope": []})["mope"] == []


def test_what_shares_is_known_by_its_weights(weights, tables, tmp_path):
    """Two folders with the same weights are one encoder; one with other weights isn't."""
    pool, device = EncoderPool(), torch.device("cpu")
    content = tiny_run(weights, tables, tmp_path / "run")
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(weights["text"], copy)
    shutil.copytree(weights["text"], other)

    def get(folder, **encoder):
        content["inputs"]["text"]["encoder"] = {"weights": str(folder), "tuning": "prompt", **encoder}
        return pool.get(Config.parse(content).inputs["text"], device, None)

    first = get(weights["text"])
    assert get(copy) is first
    assert get(weights["text"]) is first
    model = type(first.backbone).from_pretrained(other)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[1, 1] += 1
    model.save_pretrained(other)
    second = get(other)
    assert second is not first
    assert get(weights["text"], tuning="full") is not first
    assert get(weights["text"], pooling="mean") is not first
    content["inputs"]["text"]["encoder"] = {"weights": str(copy)}
    entry = Config.parse(content).inputs["text"]
    assert pool.get(entry, device, torch.bfloat16) is not first
    assert own_because(entry) is None
    del first, second
    gc.collect()
    assert not list(pool._by_name)


def test_swin_shares_as_well(weights, tables, tmp_path, rows):
    torch.manual_seed(0)
    shape = SwinConfig(
        image_size=28, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=7
    )
    SwinModel(shape).save_pretrained(tmp_path / "swin")
    shutil.copy(f"{weights['image']}/preprocessor_config.json", tmp_path / "swin")
    swin = {**weights, "image": str(tmp_path / "swin")}
    runs = [make_run(name, swin, tables, tmp_path) for name in ("mope", "longer", "static", "image")]
    predictors = Predictors(runs, device="cpu")
    found = predictors.predict(dict.fromkeys(predictors.runs, rows[:3]))
    for name, predictions in found.items():
        for row, prediction in zip(rows, predictions, strict=False):
            require_same(prediction, predictors[name].predict(row)[0])


def test_models_that_leave_something_in_their_modules_run_one_at_a_time(predictors, rows, monkeypatch):
    """As Swins do, whatever predictors and threads run them."""
    predictor = predictors["mope"]
    monkeypatch.setattr(predictor.model.fusion.encoder("image").encoder, "reentrant", False)
    assert not predictor.model.fusion.may_share_time
    done = threading.Event()
    threads = [
        threading.Thread(target=lambda one=one: (one.predict({"mope": rows[:1]}), done.set()))
        for one in (predictors, Predictors({"mope": predictor.run}, device="cpu"))
    ]
    with taking_turns(predictor.model.fusion):
        for thread in threads:
            thread.start()
        assert not done.wait(0.5)
    for thread in threads:
        thread.join(60)
    assert done.is_set()


def test_long_texts_of_one_run_don_t_make_another_s_as_long(predictors):
    encoder = predictors["mope"].model.fusion.encoder("text")

    def call(rows, length):
        ids = torch.ones(rows, length, dtype=torch.long)
        return encoder.call({"input_ids": ids, "attention_mask": ids}, None)

    def apart(*shapes):
        calls = [call(*shape) for shape in shapes]
        return sorted(
            sorted(shapes[place] for place in some) for some in _by_length(range(len(calls)), calls)
        )

    assert apart((1, 512), (31, 8)) == [[(1, 512)], [(31, 8)]]
    assert apart((31, 8), (3, 16), (1, 512), (2, 400)) == [[(1, 512), (2, 400)], [(3, 16), (31, 8)]]
    assert apart((1, 4), (1, 64)) == [[(1, 4), (1, 64)]]  # another pass would cost more
    assert apart((16, 30), (16, 40)) == [[(16, 30), (16, 40)]]


def test_wrong_names_are_said(runs, predictors, rows, tmp_path):
    with pytest.raises(UserError, match="There is no run 'none': there are mope, longer"):
        predictors.predict({"none": rows})
    with pytest.raises(UserError, match="There is no run: name a folder of one"):
        Predictors([])
    other = tmp_path / "mope"
    with pytest.raises(UserError, match=r"Two runs are called 'mope'.*give them other names"):
        Predictors([runs["mope"], other])
    named = Predictors({"a": runs["mope"], "b": runs["mope"]}, device="cpu")
    assert (
        named["a"].model.fusion.encoder("image").encoder
        is Predictor(runs["mope"], device="cpu").model.fusion.encoder("image").encoder
    )
