"""How often `mope explain` asks a run of its rows, and that what it derives is what it would be told."""

import pytest
import torch
from run_tester import quiet, tiny_run

from mope.config import Config
from mope.data.table import open_table
from mope.insight import explain_rows
from mope.insight.seen import see
from mope.insight.shuffle import Shuffled, _Outcomes, shuffle_inputs
from mope.predictor import Predictor
from mope.tasks.metrics import compute_metrics
from mope.training import train


@pytest.fixture(scope="module")
def predictor(weights, tables, tmp_path_factory):
    config = Config.parse(tiny_run(weights, tables, tmp_path_factory.mktemp("passes") / "run", epochs=1))
    train(config, report=quiet)
    return Predictor(config.output, device="cpu")


def counted(predictor, monkeypatch) -> list[int]:
    """Rows of each batch that the model is asked of, from now on."""
    sizes: list[int] = []
    forward = predictor.forward_batch

    def count(batch):
        logits, scores = forward(batch)
        sizes.append(len(logits))
        return logits, scores

    monkeypatch.setattr(predictor, "forward_batch", count)
    return sizes


def test_three_passes_tell_all_of_two_inputs_and_of_the_experts(predictor, monkeypatch):
    table = open_table(predictor.settings.data.test)
    sizes = counted(predictor, monkeypatch)
    found = explain_rows(predictor, table, attention=0)
    assert {loss.inputs for loss in found.losses} == {("image",), ("text",), ("image", "text")}
    assert found.same_mixture is not None
    assert sum(sizes) == 3 * len(table)
    explain_rows(predictor, table, shuffle=False, attention=0)
    assert sum(sizes) == 4 * len(table)


def test_a_text_that_guides_is_encoded_once(predictor, monkeypatch):
    """However many passes ask it, wherever it is shuffled to; and what comes of it is the same."""
    table = open_table(predictor.settings.data.test)
    expected = predictor.outcomes(table)[0]
    fusion, rows = predictor.model.fusion, []
    encoder = fusion.encoder("text").encoder
    handle = encoder.register_forward_hook(lambda module, args, output: rows.append(len(output.pooled)))
    try:
        explain_rows(predictor, table, attention=4)
        assert sum(rows) == len({row["question"] for row in table})
        with fusion.remembering():
            for _ in range(2):
                torch.testing.assert_close(predictor.outcomes(table)[0], expected, rtol=1e-4, atol=1e-4)
        rows.clear()
        predictor.outcomes(table)
        assert sum(rows) == len(table)  # nothing is remembered any more
    finally:
        handle.remove()


@pytest.mark.parametrize("only", ["accuracy", "f1_macro"])
def test_one_metric_alone_is_what_it_is_among_all(predictor, only):
    outcome = predictor.outcomes(open_table(predictor.settings.data.test))
    every = compute_metrics(predictor.model.task, *outcome)
    assert compute_metrics(predictor.model.task, *outcome, only) == {only: every[only]}


@pytest.mark.parametrize("first", ["image", "text"])
def test_what_is_derived_is_what_the_run_says(predictor, first):
    table = open_table(predictor.settings.data.test)
    columns = {name: list(reader.columns) for name, reader in predictor.readers.items()}
    (other,) = set(columns) - {first}
    outcomes = _Outcomes(predictor, table, predictor.outcomes(table))
    outcomes.moved(columns[first])
    for moved in (columns[other], columns[first] + columns[other]):
        derived, targets = outcomes.moved(moved)
        if moved == columns[other]:  # in the other direction of the circle
            shuffled = Shuffled(table, moved)
            back = torch.from_numpy(shuffled.source).argsort()
            shuffled.source = back.numpy()
        else:
            shuffled = Shuffled(table, moved)
        expected, labels = predictor.outcomes(shuffled)
        torch.testing.assert_close(derived, expected)
        assert targets.tolist() == labels.tolist()


def test_rows_are_seen_as_they_are_predicted(predictor):
    table = open_table(predictor.settings.data.test)
    seen = see(predictor, table, True)
    assert [one.label for one in seen.predictions] == [one.label for one in predictor.predict(table)]
    assert seen.outcome is not None
    for found, expected in zip(seen.outcome, predictor.outcomes(table), strict=True):
        torch.testing.assert_close(found, expected)
    assert see(predictor, table, False).outcome is None


def test_a_row_without_a_label_that_can_be_used_says_why(predictor):
    table = open_table(predictor.settings.data.test)
    rows = [dict(row) for row in table]
    rows[1][predictor.settings.data.label] = "mauve"
    found = explain_rows(predictor, open_table(rows, folder=table.folder), attention=0)
    assert (found.left_out, len(found.predictions)) == (1, len(table) - 1)
    assert shuffle_inputs(predictor, found.table, predictor.outcomes(found.table), resamples=2)
