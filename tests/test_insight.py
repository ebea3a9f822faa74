"""What is said of experts, attention and modalities, against slow references; and the report."""

import copy
import json
import re

import numpy
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_tester import enlarge

from mope.cli import main
from mope.config import Config
from mope.data.table import open_table
from mope.encoders import TransformerEncoder
from mope.errors import UserError
from mope.insight import explain_rows, figures, routing, words
from mope.insight.answers import confusion_counts, label_scores
from mope.insight.attention import attention_maps
from mope.insight.explanation import _information
from mope.insight.shuffle import Shuffled
from mope.methods import find_method
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.prompts import variation
from mope.training import train


def scores_of(seed: int, rows: int = 30, layers: int = 2, experts: int = 3) -> numpy.ndarray:
    found = numpy.random.default_rng(seed).random((rows, layers, experts)) ** 3
    return found / found.sum(axis=2, keepdims=True)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_routing_numbers_against_loops(seed):
    scores = scores_of(seed)
    shares = routing.importance(scores)
    for layer in range(2):
        total = [sum(scores[row, layer, expert] for row in range(30)) for expert in range(3)]
        assert shares[layer] == pytest.approx([one / sum(total) for one in total])
        mean = sum(total) / 3
        spread = sum((one - mean) ** 2 for one in total) / 3
        assert variation(torch.tensor(shares))[layer] == pytest.approx(spread / mean**2)
        entropy = -sum(one / sum(total) * numpy.log(one / sum(total)) for one in total)
        assert routing.effective_experts(shares)[layer] == pytest.approx(numpy.exp(entropy))
        per_row = [-sum(p * numpy.log(p) for p in scores[row, layer] if p > 0) for row in range(30)]
        assert routing.score_entropy(scores)[layer] == pytest.approx(sum(per_row) / 30)
        for expert in range(3):
            best = sorted(range(30), key=lambda row: -scores[row, layer, expert])[:4]
            assert routing.top_samples(scores, 4)[layer, expert].tolist() == best


def test_mutual_information_is_the_labels_entropy_where_routing_tells_them():
    labels = ["a", "b", "c", "d"] * 100
    told, blind = numpy.zeros((400, 1, 4)), numpy.full((400, 1, 4), 0.25)
    told[numpy.arange(400), 0, numpy.arange(400) % 4] = 1
    found = routing.mutual_information(told, labels)
    assert found.bits[0] == pytest.approx(2.0, abs=0.05)
    assert found.most == pytest.approx(numpy.full(len(found.bits), 2.0))
    assert routing.mutual_information(told, [str(label == "a") for label in labels]).most == pytest.approx(
        0.811, abs=1e-3
    )
    assert routing.mutual_information(blind, labels).bits[0] == 0
    noise = numpy.random.default_rng(0).dirichlet([0.2] * 4, (400, 1))
    assert routing.mutual_information(noise, labels).bits[0] < 0.05


def test_of_several_labels_the_one_that_routing_says_most_of_counts():
    genres = [
        ["comedy"] * (n % 2 == 0) + ["drama"] * (n % 3 == 0) + ["war"] * (n % 5 == 0) for n in range(400)
    ]
    scores = numpy.eye(2)[numpy.arange(400) % 2][:, None]  # by comedy
    found = _information(scores, genres, several=True)
    assert found.bits[0] == pytest.approx(1.0, abs=0.02)
    assert found.most == pytest.approx(numpy.full(len(found.bits), 1.0))


def test_each_layer_is_held_against_what_its_own_label_could_say():
    """A rare label that one layer tells wholly is no measure of what another tells of a common one."""
    rare, common = numpy.arange(400) % 20 == 0, numpy.arange(400) % 2 == 0
    genres = [["rare"] * int(r) + ["common"] * int(c) for r, c in zip(rare, common, strict=True)]
    half = numpy.where(numpy.arange(400) % 4 < 2, common, numpy.arange(400) % 8 < 4)
    scores = numpy.stack([numpy.eye(2)[rare.astype(int)], numpy.eye(2)[half.astype(int)]], axis=1)
    found = _information(scores, genres, several=True)
    assert found.most == pytest.approx([0.286, 1.0], abs=1e-3)
    assert found.shares[0] == pytest.approx(1.0, abs=0.05)
    assert found.shares[1] == pytest.approx(found.bits[1], abs=1e-6)
    assert found.shares[1] < 0.5


def test_similarity_is_the_cosine():
    experts = numpy.random.default_rng(0).normal(size=(3, 2, 5))
    found = routing.similarity([experts])[0]
    for one in range(3):
        for other in range(3):
            a, b = experts[one].ravel(), experts[other].ravel()
            assert found[one, other] == pytest.approx(a @ b / numpy.sqrt((a @ a) * (b @ b)))


def test_words_stand_out_where_an_expert_takes_them_and_not_by_chance():
    texts = ["the cat sits", "the dog runs"] * 60
    counts, names = words.count_names([words.words_of(text) for text in texts])
    assert names == ["cat", "dog", "runs", "sits", "the"]
    weights = numpy.array([1.0, 0.0] * 60)
    found = [name for name, _ in words.standing_out(counts, weights, names)]
    assert sorted(found) == ["cat", "sits"]
    assert words.standing_out(counts, numpy.full(120, 0.5), names) == []
    assert words.standing_out(numpy.zeros((2, 0)), numpy.ones(2), []) == []
    assert words.words_of("Don't say Größe-2!") == ["don't", "say", "größe-2"]


def test_few_words_stand_out_by_chance():
    """Of 20 experts without a preference among 300 words, about one may have a word that stands out."""
    generator = numpy.random.default_rng(0)
    texts = [[f"word{n}" for n in generator.integers(0, 300, 10)] for _ in range(500)]
    counts, names = words.count_names(texts)
    found = 0
    for _ in range(20):
        weights = (generator.random(500) < 0.25).astype(float)
        found += len(words.standing_out(counts, weights, names))
    assert found <= 4
    assert words.standing_out(numpy.ones((3, 1)), numpy.array([1.0, 1.0, 0.0]), ["only"]) == []


def test_log_odds_written_out():
    counts = numpy.array([[3.0, 1.0], [0.0, 4.0]])
    found = dict(words.standing_out(counts, numpy.array([1.0, 0.0]), ["a", "b"], least=-10))
    prior = numpy.array([3.0, 5.0])
    inside, outside = numpy.array([3.0, 1.0]) + prior, numpy.array([0.0, 4.0]) + prior
    for place, name in enumerate("ab"):
        odds = [numpy.log(of[place] / of[1 - place]) for of in (inside, outside)]
        z = (odds[0] - odds[1]) / numpy.sqrt(1 / inside[place] + 1 / outside[place])
        assert found[name] == pytest.approx(z)


def test_no_row_keeps_its_own_cell_when_shuffled(tables):
    table = open_table(tables / "train.csv")
    column = table.columns[0]
    moved = Shuffled(table, [column], seed=3)
    assert sorted(moved.source) == list(range(len(table)))
    assert all(place != source for place, source in enumerate(moved.source))
    assert moved[5][column] == table[int(moved.source[5])][column]
    assert {k: v for k, v in moved[5].items() if k != column} == {
        k: v for k, v in table[5].items() if k != column
    }


def fused(main: hf.PreTrainedModel, config: Config) -> FusionModel:
    text = hf.BertModel(
        hf.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=20), False
    )
    encoders = {"image": TransformerEncoder(main), "text": TransformerEncoder(text)}
    return FusionModel.build(config, ["a", "b"], encoders).eval()


def test_attention_of_the_class_token_is_the_models_own(config):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    make = hf.ViTConfig(**shape, image_size=24, patch_size=8, attn_implementation="eager")
    bare = hf.ViTModel(make, add_pooling_layer=False).eval()
    pixels, ids = torch.randn(2, 3, 24, 24), torch.tensor([[1, 2], [3, 4]])
    expected = bare(pixels, output_attentions=True).attentions[-1].mean(dim=1)[:, 0, 1:]
    model = fused(copy.deepcopy(bare), find_method("P-ImgOnly").apply(config))
    with torch.no_grad():
        model.fusion.get_submodule("encoders.image").prompts = None
    found = attention_maps(model, {"image": {"pixel_values": pixels}})
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-4)
    guided = fused(bare, config)
    batch = {"image": {"pixel_values": pixels}, "text": {"input_ids": ids}}
    maps = attention_maps(guided, batch)
    assert maps.shape == (2, 3, 3)
    other = attention_maps(guided, {**batch, "text": {"input_ids": ids.flip(0)}})
    assert (maps - other).abs().max() > 1e-6
    assert not bare.get_submodule("layers.1").attention._forward_pre_hooks or len(
        bare.get_submodule("layers.1").attention._forward_pre_hooks
    ) == len(bare.get_submodule("layers.0").attention._forward_pre_hooks)


def test_a_swins_windows_are_put_back_to_where_they_were(config):
    """What each token gets, read off the model's own weights, window by window."""
    make = hf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4,
        attn_implementation="eager",
    )  # fmt: skip
    bare = hf.SwinModel(make).eval()
    pixels = torch.randn(2, 3, 32, 32)
    weights = bare(pixels, output_attentions=True).attentions[-1]  # the last block's, shifted by 2
    model = fused(copy.deepcopy(bare), find_method("P-ImgOnly").apply(config))
    model.fusion.get_submodule("encoders.image").prompts = None
    found = attention_maps(model, {"image": {"pixel_values": pixels}})
    assert found.shape == (2, 8, 8)
    got = weights.mean(dim=(1, 2))  # (B * windows, 16)
    for image in range(2):
        for row in range(8):
            for column in range(8):
                shifted = ((row - 2) % 8, (column - 2) % 8)
                window = image * 4 + (shifted[0] // 4) * 2 + shifted[1] // 4
                place = (shifted[0] % 4) * 4 + shifted[1] % 4
                assert found[image, row, column] == pytest.approx(got[window, place].item(), abs=1e-5)


def test_attention_that_cannot_be_shown_says_why(config):
    model = FusionModel.build(find_method("P-TextOnly").apply(config), ["a", "b"]).eval()
    with pytest.raises(UserError, match="needs one as the main input"):
        attention_maps(model, {})


@pytest.fixture
def run(config: Config, tmp_path) -> Config:
    enlarge(config, tmp_path)
    config.training.epochs = 2
    train(config, report=lambda line: None)
    return config


@pytest.mark.slow
def test_explain_gives_the_reports_numbers_as_arrays(run):
    predictor = Predictor(run.output)
    table = open_table(run.data.test)
    found = explain_rows(predictor, table, attention=3)
    assert found.experts is not None
    layers, experts = 2, run.fusion.experts
    assert found.experts.scores.shape == (len(table), layers, experts)
    expected = numpy.array([p.routing for p in predictor.predict(table)])
    assert numpy.allclose(found.experts.scores, expected, atol=1e-5)
    assert found.experts.similarity.shape == (layers, experts, experts)
    assert found.attention.shape == (3, 4, 4)
    assert [loss.inputs for loss in found.losses] == [("image",), ("text",), ("image", "text")]
    assert all(loss.low <= loss.difference <= loss.high for loss in found.losses)
    assert found.left_out == 0
    first = {**table[0], "picture": str(table.folder / table[0]["picture"])}
    assert found.metrics["accuracy"] == pytest.approx(numpy.trace(found.confusion) / len(table))
    assert set(found.label_f1) == set(predictor.model.task.labels)
    batches = numpy.array([entry["imbalance"] for entry in found.history])
    epochs = variation(torch.tensor([entry["importance"] for entry in found.history])).numpy()
    assert batches.shape == epochs.shape == (2, layers)
    assert (batches >= 0.9 * epochs).all()  # batches even each other out, seldom the other way round
    assert explain_rows(predictor, [first], shuffle=False).losses == []
    opened = {**first, "picture": Image.open(first["picture"])}
    assert explain_rows(predictor, [opened, opened]).experts.scores == pytest.approx(
        numpy.stack([expected[0]] * 2), abs=1e-5
    )
    without = explain_rows(
        predictor, [{name: value for name, value in first.items() if name != run.data.label}]
    )
    assert without.targets is None
    with pytest.raises(UserError, match="None of the 1 rows"):
        explain_rows(predictor, [{**table[0], "picture": "gone.png"}])


@pytest.mark.parametrize("method", [None, "MoPE-both", "P-SeqFuse", "ImgOnly", "LateConcat"])
def test_the_report_is_one_file_that_needs_no_network(config, method, tmp_path, capsys):
    if method is not None:
        config = find_method(method).apply(config)
    config.training.epochs = 1
    train(config, report=lambda line: None)
    out = tmp_path / "out"
    assert main(["explain", config.output, "--out", str(out), "--rows", "12", "--beside", config.output]) == 0
    page = (out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert page.count("<h2>") >= 4
    assert ("Layer 2, expert 1" in page) == (method is None)
    assert ("Layer text 2, expert 1" in page) == (method == "MoPE-both")
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["rows"] == 12
    assert set(numbers["metrics"]) >= {"accuracy"}
    pictures = {file.stem for file in (out / "figures").glob("*.png")}
    assert pictures >= {"confusion", "shuffled"}
    assert {"importance", "training", "similarity", "gallery"} <= pictures or method is not None
    shown = json.loads((out / "figures" / "attention.json").read_text()) if "attention" in pictures else []
    beside = {entry["run"] for entry in shown}
    assert len(beside) == (2 if method in (None, "MoPE-both", "P-SeqFuse", "LateConcat") else 0)
    assert page.count("background-image") == len(set(re.findall(r'class="(row\d+)"', page))) <= 12
    assert pictures == {file.stem for file in (out / "figures").glob("*.json")}
    for file in (out / "figures").glob("*.png"):
        Image.open(file).verify()


@pytest.mark.slow
def test_the_report_of_other_tasks(config, tmp_path):
    table = open_table(config.data.train)
    rows = [{**row, "picture": str(table.folder / row["picture"])} for row in table]
    for task, label in (("multilabel", lambda n: "a|b" if n % 2 else "a"), ("regression", lambda n: n / 7)):
        file = tmp_path / f"{task}.jsonl"
        file.write_text("".join(json.dumps({**row, "y": label(n)}) + "\n" for n, row in enumerate(rows)))
        content = config.model_dump()
        content |= {"task": task, "output": str(tmp_path / task)}
        content["data"] |= {"train": str(file), "validation": str(file), "test": str(file)}
        content["data"] |= {"label": "y", "labels": None}
        content["training"]["epochs"] = 1
        train(Config.model_validate(content), report=lambda line: None)
        assert main(["explain", str(tmp_path / task), "--rows", "10"]) == 0
        made = {path.stem for path in (tmp_path / task / "explain" / "figures").glob("*.png")}
        numbers = json.loads((tmp_path / task / "explain" / "numbers.json").read_text())
        assert (numbers["experts"]["information"] is None) == (task == "regression")
        assert main(["explain", str(tmp_path / task), "--rows", "1"]) == 0
        assert ("label_f1" if task == "multilabel" else "answers") in made


@pytest.mark.parametrize(
    ("words_", "reason"),
    [
        (["explain", "nowhere"], "holds no finished run"),
        (["explain", "RUN", "--rows", "0"], "--rows is 0"),
        (["explain", "RUN", "--data", "gone.csv"], "no table gone.csv"),
        (["explain", "RUN", "--beside", "nowhere"], "holds no finished run"),
    ],
)
def test_what_explain_refuses(run, words_, reason, capsys):
    assert main([run.output if word == "RUN" else word for word in words_]) == 2
    assert reason in capsys.readouterr().err


def test_figures_take_whatever_there_is():
    assert figures.training_course([], ["1"]) is None
    assert figures.training_course([{"epoch": 1.0, "eval_loss": 2.0}], ["1"]) is None
    picture = Image.new("RGB", (30, 20), "white")
    flat = figures.glow(picture, numpy.ones((2, 2)))
    assert flat.size == (30, 20)
    content, numbers = figures.confusion(confusion_counts(["a", "b"], ["a", "a"], ["a", "b"]), ["a", "b"])
    assert numbers["counts"] == [[1, 0], [1, 0]]
    names = [f"n{place}" for place in range(30)]
    targets = [*names, *names[:24]]
    _, numbers = figures.confusion(confusion_counts(targets, [*names[1:], *targets[29:]], names), names)
    assert numbers["labels"] == [*names[:24], "6 others"]
    assert numpy.sum(numbers["counts"]) == 54
    assert content.startswith(b"\x89PNG")
    many = {f"answer {n}": 0.5 for n in range(3000)}  # VQAv2 has as many
    content, numbers = figures.label_f1(many, [n % 7 for n in range(3000)])
    assert (content[:4], len(numbers["f1"])) == (b"\x89PNG", 3000)
    _, numbers = figures.label_f1(label_scores([["a"], ["a", "b"]], [["a"], ["b"]], ["a", "b"]))
    assert numbers["f1"] == {"a": pytest.approx(2 / 3), "b": 1.0}
