"""Numbers, categories and dates as an input: what is found of columns, how cells are read, and whole runs."""

import csv
import datetime
import math
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_tester import enlarged, tiny_run

from mope.config import Config, FieldConfig, InputConfig
from mope.data.fields import find_fields, kind_of
from mope.data.readers import TableReader
from mope.data.table import MemoryTable, Table, dataset_of, open_table
from mope.encoders.tables import TableEncoder
from mope.errors import UserError
from mope.media.cells import BadCell, Cells
from mope.media.values import open_category, open_date, open_number

HERE = Path()
PRICES = {"red": 1, "green": 20, "blue": 300}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2.5, None], "number"),
        (["1", "2.5", ""], "number"),
        (["1e3", "nan", "NA"], "number"),
        (["2026-11-26", "2025/01/02"], "date"),
        ([datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3)], "date"),
        ([True, False], "category"),
        (["True", "False"], "category"),
        (["red", "1"], "category"),
        ([None, "", "n/a"], None),
    ],
)
def test_what_a_column_holds_is_seen_in_all_of_its_cells(cells, kind):
    assert kind_of(cells) == kind


@given(st.one_of(st.integers(-(10**6), 10**6), st.booleans(), st.floats(-1e6, 1e6)))
def test_a_cell_of_csv_is_the_typed_cell(value):
    assert open_category(str(value)) == open_category(value)
    assert open_number(str(float(value))) == open_number(value)


@given(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)))
def test_a_date_is_days_since_1970_however_it_is_written(moment):
    days = (moment - datetime.datetime(1970, 1, 1)).total_seconds() / 86400
    for cell in (moment, moment.isoformat(), numpy.datetime64(moment), moment.replace(tzinfo=datetime.UTC)):
        assert open_date(cell) == pytest.approx(days, abs=1e-9)


@pytest.mark.parametrize("cell", ["a lot", "12 EUR", [1], {"a": 1}, math.inf, "1,5"])
def test_what_is_no_number_is_refused(cell):
    with pytest.raises(BadCell):
        open_number(cell)


def _facts(columns):
    return InputConfig.model_validate({"kind": "table", "columns": columns})


def _found(rows: list[dict], columns) -> InputConfig:
    settings = {
        "inputs": {"facts": {"kind": "table", "columns": columns}},
        "fusion": {"main": "facts", "method": "unimodal"},
    }
    return find_fields(Config.parse(settings), Table(dataset_of(rows))).inputs["facts"]


def test_outliers_move_neither_centre_nor_scale():
    rng = numpy.random.default_rng(0)
    values = rng.normal(50, 4, 1000).tolist()
    found = _found([{"price": value} for value in [*values, 1e12]], ["price"]).columns["price"]
    assert found.centre == pytest.approx(50, abs=0.5)
    assert found.scale == pytest.approx(4, rel=0.1)
    reader = TableReader(_facts({"price": found}))
    (number,), _ = reader.read(Cells(price=1e15), HERE)
    assert number == 10


def test_bins_hold_equally_many_values():
    values = numpy.random.default_rng(0).exponential(1, 4000)
    found = _found([{"price": float(value)} for value in values], ["price"]).columns["price"]
    counts, _ = numpy.histogram((values - found.centre) / found.scale, found.edges)
    assert counts.max() - counts.min() <= 2


def test_values_that_occur_once_are_as_unknown_ones():
    rows = [{"brand": name} for name in ["a", "b", "a", "b", "once"]]
    reader = TableReader(_found(rows, ["brand"]))
    places = {name: reader.read(Cells(brand=name), HERE)[1][0] for name in ["a", "b", "once", "new", None]}
    assert places["once"] == places["new"] == 1
    assert places[None] == 0
    assert {places["a"], places["b"]} == {2, 3}


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([{"x": 1}, {"x": 1}], ["x"], "one value"),
        ([{"x": None}, {"x": ""}], ["x"], "is empty"),
        ([{"x": "1"}, {"x": "b"}], {"x": "number"}, "row 2, column 'x': no number"),
        ([{"x": 1}], ["y"], "no column 'y'"),
        ([{"a.b": 1}, {"a.b": 2}], ["a.b"], "dot"),
    ],
)
def test_a_column_that_says_nothing_is_named(rows, columns, words):
    with pytest.raises(UserError, match=words):
        _found(rows, columns)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "table"}, "a list of names"),
        ({"kind": "table", "columns": ["a"], "column": "b"}, "no `column`"),
        ({"kind": "image", "columns": ["a"]}, "for kind: table"),
        ({"kind": "image", "column": "a"}, "'inputs.x.encoder' is missing"),
        ({"kind": "table", "columns": ["a"], "encoder": {"weights": "package:minilm-l6"}}, "tuning is full"),
    ],
)
def test_a_wrong_input_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Config.parse({"inputs": {"x": settings}, "fusion": {"main": "x", "method": "unimodal"}})


def _encoder() -> TableEncoder:
    torch.manual_seed(0)
    price = FieldConfig(kind="number", centre=0, scale=1, edges=[-2, -1, 0, 1, 2])
    when = FieldConfig(kind="date", centre=0, scale=1, edges=[-2, 2])
    return TableEncoder(
        {"price": price, "brand": FieldConfig(kind="category", values=["a", "b"]), "when": when}
    )


def test_a_row_depends_on_its_own_values_alone():
    encoder = _encoder().eval()
    numbers = torch.randn(5, 8)
    numbers[1, 0] = math.nan
    categories = torch.tensor([[0], [1], [2], [3], [2]])
    together = encoder(numbers=numbers, categories=categories).pooled
    alone = [encoder(numbers=numbers[i : i + 1], categories=categories[i : i + 1]).pooled for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert together.isfinite().all()


def test_attention_is_the_packages():
    from rtdl_revisiting_models import MultiheadAttention

    from mope.encoders.fttransformer import _Attention

    theirs = MultiheadAttention(d_embedding=16, n_heads=4, dropout=0.1).eval()
    ours = _Attention(d_embedding=16, n_heads=4, dropout=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    few, many = torch.randn(3, 1, 16), torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(few, many), theirs(few, many))


def test_a_missing_number_is_not_the_centre():
    encoder = _encoder().eval()
    numbers = torch.zeros(2, 8)
    numbers[0, 0] = math.nan
    found = encoder(numbers=numbers, categories=torch.full((2, 1), 2)).pooled
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.fixture
def with_facts(weights, tables, tmp_path) -> Config:
    """The tiny run with a table beside picture and question: the answer's number, noise, and a date."""
    folder = tmp_path / "facts"
    folder.mkdir()
    rng = numpy.random.default_rng(1)
    for split in ("train", "validation", "test"):
        with (tables / f"{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows):
            row["picture"] = str(tables / row["picture"])
            row["price"] = f"{PRICES[row['colour']] * (1 + rng.random() / 10):.3f}"
            row["brand"] = rng.choice(["a", "b", "c"])
            row["since"] = (datetime.date(2026, 1, 1) + datetime.timedelta(days=number)).isoformat()
            if number % 7 == 3:
                row["price"] = ""
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    content = tiny_run(enlarged(weights, tmp_path), folder, tmp_path / "run")
    content["inputs"]["facts"] = {
        "kind": "table",
        "columns": ["price", "brand", "since"],
        "encoder": {"tuning": "full"},
    }
    return Config.parse(content)


def test_a_run_with_a_table(with_facts, tmp_path):
    from mope import Predictor, evaluate, train
    from mope.run import read_run

    train(with_facts, report=lambda line: None)
    kept, _ = read_run(with_facts.output)
    assert {name: field.kind for name, field in kept.inputs["facts"].columns.items()} == {
        "price": "number",
        "brand": "category",
        "since": "date",
    }
    assert "accuracy" in evaluate(with_facts.output, report=lambda line: None)
    predictor = Predictor(with_facts.output)
    row = open_table(Path(with_facts.data.test or ""))[0]
    typed = {**row, "price": float(row["price"] or "nan"), "since": datetime.date.fromisoformat(row["since"])}
    one, same, without = predictor.predict([row, typed, {**row, "price": None, "brand": "never seen"}])
    assert one.probabilities == pytest.approx(same.probabilities, abs=1e-6)
    assert without.error is None
    assert without.probabilities != one.probabilities
    bad = predictor.predict([{**row, "price": "a lot"}])[0]
    assert bad.error is not None
    assert "price: no number" in bad.error
    # Resumed, it is known for the same run, though its config names the columns alone.
    assert train(with_facts, resume=True, report=lambda line: None)["validation"]


def test_only_the_table_learns_at_the_rate_of_what_is_new(with_facts):
    from mope.model import FusionModel

    config = find_fields(with_facts, open_table(with_facts.data.train or ""))
    groups = FusionModel.build(config, ["red", "green", "blue"]).parameter_groups()
    assert any(name.startswith("fusion.encoders.facts.") for name, _ in groups["complementary"])
    assert not any(name.startswith("fusion.encoders.facts.") for name, _ in groups["encoder"])


def test_a_table_alone(with_facts):
    from mope import train

    alone = Config.parse(
        {
            **with_facts.model_dump(),
            "inputs": {"facts": with_facts.inputs["facts"].model_dump()},
            "fusion": {"method": "unimodal", "main": "facts"},
            "training": {**with_facts.training.model_dump(), "epochs": 60, "learning_rate": 3e-3},
        }
    )
    assert train(alone, report=lambda line: None)["validation"]["accuracy"] > 0.7


def test_unseen_cells_are_drawn_while_training():
    reader = TableReader(_facts({"brand": FieldConfig(kind="category", values=["a"])}))
    places = [reader.read(Cells(brand="a"), HERE, train=True)[1][0] for _ in range(2000)]
    assert {0, 1, 2} == set(places)
    assert places.count(2) > 1900


def test_rows_in_memory_need_not_have_every_column(with_facts):
    rows = MemoryTable([{"price": 1.0}])
    reader = TableReader(find_fields(with_facts, open_table(with_facts.data.train or "")).inputs["facts"])
    numbers, categories = reader.read(reader.cell(rows[0]), HERE)
    assert not math.isnan(numbers[0])
    assert math.isnan(numbers[1])
    assert categories == [0]


def test_a_run_with_a_table_serves_explains_and_exports(with_facts):
    import base64
    import json

    from serve_tester import talk

    from mope import Predictor, train
    from mope.export import export_run
    from mope.insight.shuffle import shuffle_inputs
    from mope.serve.app import build_app
    from mope.serve.settings import ServeSettings

    train(with_facts, report=lambda line: None)
    predictor = Predictor(with_facts.output, device="cpu")
    row = open_table(with_facts.data.test or "")[0]
    expected = predictor.predict(row)[0].probabilities
    facts = {"price": float(row["price"]), "brand": row["brand"], "since": row["since"]}
    content = Path(row["picture"]).read_bytes()
    sent = {"image": base64.b64encode(content).decode(), "text": row["question"], "facts": facts}
    app = build_app(predictor, ServeSettings(page=False))
    with talk(app) as client:

        def ask(**facts):
            return client.post("/v1/predict", json={"row": {**sent, "facts": facts}})

        assert ask(**facts).json()["predictions"][0]["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert ask(brand="new").json()["predictions"][0]["error"] is None
        assert "facts: price: no number" in ask(price="a lot").json()["predictions"][0]["error"]
        strange = ask(cost=3)
        assert strange.status_code == 422
        assert strange.json()["error"] == "The row: 'facts' has no column 'cost': it has price, brand, since."
        wrong = ask(price=[3])
        assert wrong.json()["error"] == "The row: 'facts.price' must be a number, or null."
        parts = {f"facts.{name}": str(value) for name, value in facts.items()}
        form = client.post(
            "/v1/predict", data={"text": row["question"], **parts}, files={"image": ("a.png", content)}
        )
        assert form.json()["predictions"][0]["probabilities"] == pytest.approx(expected, abs=1e-5)
        schema = json.dumps(client.get("/openapi.json").json())
        assert '"facts.price"' in schema
    table = open_table(with_facts.data.test or "")
    names = [loss.inputs for loss in shuffle_inputs(predictor, table, predictor.outcomes(table), resamples=2)]
    assert ("facts",) in names
    assert ("facts.price",) in names
    assert export_run(with_facts.output)["difference"] < 1e-4


def test_the_page_has_a_widget_per_column(with_facts):
    pytest.importorskip("gradio")
    import gradio

    from mope import Predictor, train
    from mope.serve.app import build_app
    from mope.serve.page import _Page
    from mope.serve.settings import ServeSettings

    train(with_facts, report=lambda line: None)
    app = build_app(Predictor(with_facts.output, device="cpu"), ServeSettings(page=False))
    page = _Page(app.state.engine, app.state.runs.served, Path(with_facts.output))
    kinds = [type(page._widget(*slot)) for slot in page.slots]
    assert kinds == [gradio.Image, gradio.Textbox, gradio.Number, gradio.Dropdown, gradio.Textbox]
    assert page._examples()[0][3] in ["a", "b", "c"]
    app.state.engine.close()
