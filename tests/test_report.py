"""Whether answers depend on experts, against experts made all alike; and the words of a report's page."""

import json
import re
from html import unescape
from pathlib import Path

import numpy
import pytest
import torch
from run_tester import changed, quiet

from mope.cli import main
from mope.config import Config
from mope.data.table import Table, open_table
from mope.insight import explain_rows
from mope.insight.mixture import mix_alike
from mope.methods import find_method
from mope.predictor import Predictor
from mope.tasks.metrics import compute_metrics
from mope.training import train


def loud(config: Config, method: str | None = None) -> tuple[Predictor, Table]:
    """A run, whose experts are so large and its routing so sharp that answers depend on it; its test rows."""
    config = config if method is None else find_method(method).apply(config)
    train(changed(config, fusion={"temperature": 0.05}, training={"epochs": 1}), report=quiet)
    predictor = Predictor(config.output, batch_size=8)
    for own in predictor.model.fusion.guided.values():
        assert own.experts is not None
        for prompts in own.experts.prompts:
            prompts.data.mul_(50)
    return predictor, predictor.table()


@pytest.mark.parametrize(("method", "joining"), [(None, "beside"), (None, "added"), ("MoPE-both", "beside")])
def test_one_mixture_for_all_rows_is_the_mean_of_their_own(config, method, joining):
    """As if all experts of a layer were the mean prompt: then routing makes no difference."""
    predictor, table = loud(changed(config, fusion={"joining": joining}), method)
    predictor.settings.training.metric = "calibration_error"  # any other logits have another one
    plain = predictor.outcomes(table)
    scores = numpy.array([one.routing for one in predictor.predict(table)])
    found = mix_alike(predictor, table, plain, scores)
    assert found is not None
    torch.testing.assert_close(predictor.outcomes(table), plain)  # the run routes as before
    begin, shares = 0, torch.tensor(scores.mean(axis=0), dtype=torch.float32)
    for own in predictor.model.fusion.guided.values():
        assert own.experts is not None
        for layer, prompts in enumerate(own.experts.prompts):
            mean = torch.einsum("k,kld->ld", shares[begin + layer], prompts.data)
            prompts.data.copy_(mean.expand_as(prompts))
        begin += len(own.experts.prompts)
    alike = predictor.outcomes(table)
    assert (alike[0] - plain[0]).abs().max() > 1e-3
    task = predictor.model.task
    before, after = (compute_metrics(task, *outcome)[found.metric] for outcome in (plain, alike))
    assert (found.inputs, found.metric) == ((), "calibration_error")
    assert found.value == pytest.approx(after, abs=1e-4)
    assert found.difference == pytest.approx(after - before, abs=1e-4)
    assert abs(after - before) > 1e-3
    assert found.low <= found.difference <= found.high
    assert found.low < found.high


def test_so_many_rows_are_asked_once_more(config, monkeypatch):
    predictor, table = loud(config)
    plain = predictor.outcomes(table)
    scores = numpy.array([one.routing for one in predictor.predict(table)])
    asked, outcomes = [], predictor.outcomes
    monkeypatch.setattr(predictor, "outcomes", lambda rows: asked.append(rows.numbers) or outcomes(rows))
    found = mix_alike(predictor, table, plain, scores, rows=5)
    expected = [table.numbers[place * len(table) // 5] for place in range(5)]
    assert [list(numbers) for numbers in asked] == [expected]
    some = table.select([place * len(table) // 5 for place in range(5)])
    before = compute_metrics(predictor.model.task, *outcomes(some))[found.metric]
    assert found.value - found.difference == pytest.approx(before)


def test_where_routing_cannot_be_set_it_is_not_measured(config):
    predictor, table = loud(config)
    plain = predictor.outcomes(table)
    scores = numpy.array([one.routing for one in predictor.predict(table)])
    assert mix_alike(predictor, table, plain, scores[:, :1]) is None  # routed in a way of its own
    predictor.compile = "default"
    assert mix_alike(predictor, table, plain, scores) is None


def test_an_explanation_has_what_one_mixture_costs(config):
    predictor, table = loud(config)
    found = explain_rows(predictor, table)
    assert found.same_mixture is not None
    assert found.same_mixture.difference == pytest.approx(
        found.same_mixture.value - found.metrics["accuracy"]
    )
    assert json.loads(json.dumps(found.as_json()))["same_mixture"]["value"] == found.same_mixture.value
    assert explain_rows(predictor, table, shuffle=False).same_mixture is None
    bare = [{name: row[name] for name in ("picture", "question")} for row in table]
    for row in bare:
        row["picture"] = str(table.folder / row["picture"])
    assert explain_rows(predictor, bare).same_mixture is None
    assert explain_rows(predictor, bare).as_json()["same_mixture"] is None


def text_of(page: Path) -> str:
    """What one reads on a page, pictures' descriptions included."""
    body = page.read_text().partition("<body>")[2]
    descriptions = " ".join(re.findall(r'(?:alt|title)="([^"]*)"', body))
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))) + unescape(descriptions)


def explained(config: Config, *words: str) -> str:
    assert main(["explain", config.output, *words]) == 0
    return text_of(Path(config.output, "explain", "report.html"))


def test_a_page_says_what_its_units_mean_and_where_good_ends(config, tables):
    train(changed(config, fusion={"temperature": 0.05}), report=quiet)  # so that rows differ in their routing
    page = explained(config, "--rows", "20")
    for said in (
        "It is right on ",
        "Always to answer the most frequent label would be right on",
        "With another row's image accuracy",
        "With another row's text accuracy",
        "“Likely” is where the change over very many such rows would be: 95 of 100 such ranges hold it.",
        "An expert is a small learned hint",
        "With the same mixture for every row accuracy",
        "of 3 are used on average (3 is even use, 1 means one does everything)",
        "one label for each row",
        "The other inputs guide the main encoder by prompts (sequential)",
        "nothing: it is as it came",
        "prompts, learned tokens in each layer",
        "The main input is encoded last, under the guidance of the others.",
        "experts in each layer 3 ",
        "length of an expert, in tokens 2 ",
        "what it is best is on these rows validation, while training",
        "how far probabilities are from how often answers are right 0 ",
        "share of rows that are right 1 ",
        "what is right is on the diagonal",
        "How accuracy changes with another row's input: the further to the left, the more it matters.",
        "Blue words are far more frequent in the texts of the rows that it takes than in the others",
        "33% each is even use.",
        "from 1 (one does everything) to 3 (all alike); well above the dashed line is good",
        "1 the same, 0 unrelated, -1 opposite; lower is better",
        "layer experts used experts in a row's mixture tells of the label",
        "from 1 (one does everything) to 3 (all alike): near 3 is good, below 1.5 most were trained for",
        "0% is nothing, 100% all",
        "of its layer's routing",
    ):
        assert said in page, said
    for unknown in ("Fig.", "gamma", "log-odds", "nats", "(bits)", "cosine", "std"):
        assert unknown not in page, unknown
    file = Path(config.output, "bare.csv")
    table = open_table(tables / "test.csv")
    lines = [f"{table.folder / row['picture']},{row['question']}" for row in table]
    file.write_text("\n".join(["picture,question", *lines]) + "\n")
    page = explained(config, "--data", str(file))
    assert "These rows have no column “colour” with the right answers" in page
    assert "question, which takes rows with the right answers." in page
    assert "“Likely” is" not in page
    assert "Tells of" not in page


def test_a_page_of_another_task_and_of_no_experts(config, tables):
    config = changed(find_method("ImgOnly").apply(config), data={"label": "number", "labels": None})
    config = config.with_settings({"task": "regression"})
    train(config, report=quiet)
    page = explained(config, "--rows", "12")
    assert "rmse is " in page
    assert "usual error in the label's own units, large ones counting more. 0 is best." in page
    assert "This run has no experts to look at." in page
    assert "the further to the right, the more it matters." in page
    assert "Answers and labels: the nearer to the line, the better." in page
    assert "a number for each row" in page
    assert "The main input alone (unimodal)" in page
    assert "under the guidance of the others" not in page
    assert "experts in each layer" not in page
