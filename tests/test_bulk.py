"""Any number of rows: streamed in and out, in order, in every format."""

import json
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from bulk_tester import OUTPUTS, read_back, sources, write_csv
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_from_disk
from run_tester import quiet
from shard_tester import write_tar

from mope.bulk import Wanted, evaluate, predict_file
from mope.cli import main
from mope.data.shards import KEY
from mope.errors import UserError
from mope.predictor import Predictor

pytest_plugins = ["bulk_fixtures"]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_of_table_goes_to_every_kind_of_file(run, table_rows, tmp_path, kind):
    expected = Predictor(run, device="cpu").predict(table_rows)
    for name, file in sources(table_rows, tmp_path / "in").items():
        out = tmp_path / "deep" / f"{name.split('.')[-1]}{kind}"
        written = predict_file(run, file, out, Wanted(["id,question"]), device="cpu", batch_size=8, workers=0)
        assert (written.rows, written.bad) == (20, 3)
        assert written.first == "row 4: missing file none.png"
        found = read_back(out)
        names = ["id", "question", "predicted_label"]
        names += [f"predicted_probability_{name}" for name in ("blue", "green", "red")]
        assert list(found[0]) == [*names, "predicted_error"]
        for row, said, prediction in zip(table_rows, found, expected, strict=True):
            assert (row["id"], row["question"]) == (said["id"], said["question"])
            assert (said["predicted_label"] or None) == prediction.label
            assert (said["predicted_error"] or None) == prediction.error
            if prediction.error is None:
                assert float(said["predicted_probability_red"]) == pytest.approx(
                    prediction.probabilities["red"], abs=1e-5
                )
    assert not [path for path in (tmp_path / "deep").iterdir() if path.name.startswith(".")]


def test_predictions_of_a_stream_are_those_of_its_table(run, table_rows, tmp_path):
    predictor = Predictor(run, device="cpu", batch_size=8)
    expected = predictor.predict(table_rows)
    assert list(predictor.predict_stream(table_rows)) == expected
    assert list(predictor.predict_stream(iter(table_rows))) == expected
    assert (
        list(predictor.predict_stream(IterableDataset.from_generator(lambda: iter(table_rows)))) == expected
    )
    for file in sources(table_rows, tmp_path / "in").values():
        assert list(predictor.predict_stream(file)) == expected
    assert [p.label for p in predictor.predict_stream(table_rows[0])] == [expected[0].label]
    assert list(predictor.predict_stream([])) == []
    by_input = ({"image": row["picture"], "text": row["question"]} for row in table_rows)
    assert list(predictor.predict_stream(by_input)) == expected
    taken = []
    endless = predictor.predict_stream(taken.append(n) or table_rows[n % 20] for n in range(10**9))
    found = [next(endless) for _ in range(25)]
    assert [(p.label, p.error) for p in found] == [
        (expected[n % 20].label, expected[n % 20].error) for n in range(25)
    ]
    assert len(taken) < 300
    with pytest.raises(UserError, match="has no column 'question'"):
        next(predictor.predict_stream([{"picture": "a.png"}]))


def test_workers_keep_the_order(run, table_rows, tmp_path):
    many = write_csv([{**table_rows[n % 20], "id": n} for n in range(430)], tmp_path / "many.csv")
    outs = []
    for workers in (0, 3):
        outs.append(tmp_path / f"{workers}.csv")
        predict_file(run, many, outs[-1], Wanted(["id"]), device="cpu", batch_size=7, workers=workers)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert [row["id"] for row in read_back(outs[0])] == [str(n) for n in range(430)]


def test_nothing_is_written_over_unasked(run, table_rows, tables, tmp_path, capsys):
    table = write_csv(table_rows, tmp_path / "t.csv")
    command = ["predict", str(run), str(table), "--device", "cpu", "--workers", "0", "--out"]
    out = tmp_path / "p.csv"
    out.write_text("mine")
    for more in ([], ["--resume"]):
        assert main([*command, str(out), *more]) == 2
        said = capsys.readouterr().err
        assert (
            f"Can't write {out}: it is there already; name a new file, or replace it by --overwrite" in said
        )
        assert out.read_text() == "mine"
    assert main([*command, str(out), "--overwrite", "--keep", "id", "--keep", "colour"]) == 0
    assert list(read_back(out)[0])[:3] == ["id", "colour", "predicted_label"]
    said = capsys.readouterr()
    assert "20 rows are in" in said.out
    assert "3 of 20 rows can't be used, such as row 4: missing file none.png." in said.err
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    for wrong, sentence in (
        ([str(table), "--overwrite"], "is the table itself"),
        ([str(folder), "--overwrite"], "it is a folder of something else"),
        ([str(folder)], "it is there already; name a new folder, or replace it by --overwrite"),
        ([str(tmp_path / "n.csv"), "--keep", "ids"], "has no column 'ids': did you mean 'id'?"),
        ([str(tmp_path / "n.csv"), "--rows", "0"], "at least one row"),
        ([str(tmp_path / "n.csv"), "--json", "--resume"], "leave --json and --overlays out"),
        ([str(tmp_path / "n.csv"), "--masks", "m"], "are for a run of referring-segmentation"),
        ([str(table / "n.csv")], "Can't write"),
    ):
        assert main([*command, *wrong]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert main([*command[:-1], "--keep", "id"]) == 2
    assert "--keep is for the file that --out names" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "p.csv", "t.csv"]
    for _ in range(2):
        assert main([*command, str(tmp_path / "found"), "--overwrite"]) == 0
    assert len(load_from_disk(tmp_path / "found")) == 20


def test_what_is_kept_keeps_its_type(run, table_rows, tmp_path):
    """Of Parquet as the file says; of JSON lines what all cells have in common."""
    picture = Path(table_rows[0]["picture"]).read_bytes()
    typed = {
        "picture": [{"bytes": picture, "path": None}] * 3,
        "question": [table_rows[0]["question"]] * 3,
        "day": [date(2024, 2, 29), None, date(2025, 1, 1)],
        "side": [1, 0, -1],
        "predicted": [[1, 2], [], None],
    }
    features = Features(
        {
            "picture": Image(),
            "question": Value("string"),
            "day": Value("date32"),
            "side": ClassLabel(names=["left", "right"]),
            "predicted": [Value("int16")],
        }
    )
    table = tmp_path / "typed.parquet"
    Dataset.from_dict(typed, features=features).to_parquet(str(table))
    out = tmp_path / "out.parquet"
    predict_file(run, table, out, Wanted(["all"]), device="cpu")
    found = Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache"))
    assert found.features["day"] == Value("date32")
    assert isinstance(found.features["picture"], Image)
    assert found["side"][:] == ["right", "left", None]
    assert found["predicted"][:] == [[1, 2], [], None]
    assert found["predicted_error"][:] == [None] * 3
    with pytest.raises(UserError, match="'picture' holds bytes, which a"):
        predict_file(run, table, tmp_path / "out.csv", Wanted(["all"]), device="cpu")
    predict_file(run, table, tmp_path / "out.jsonl", Wanted(["day", "predicted"]), device="cpu")
    assert read_back(tmp_path / "out.jsonl")[0]["day"] == "2024-02-29"

    cells = {
        "number": [1, 2.5, None],
        "mixed": [1, "a", None],
        "object": [{"a": 1}, {"b": [2]}, None],
        "truth": [True, None, False],
        "large": [2**60, 0.5, None],
        "none": [None] * 3,
    }
    lines = [{**table_rows[0], **{name: values[n] for name, values in cells.items()}} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    predict_file(run, tmp_path / "t.jsonl", out, Wanted(list(cells)), device="cpu", overwrite=True)
    found = pyarrow.parquet.read_table(out)
    assert found.column("number").to_pylist() == [1.0, 2.5, None]
    assert found.column("mixed").to_pylist() == ["1", "a", None]
    assert found.column("object").to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": [2]}, None]
    assert found.column("truth").type == pyarrow.bool_()
    assert found.column("large").to_pylist() == [str(2**60), "0.5", None]
    assert found.column("none").to_pylist() == [None] * 3
    lines = [{**table_rows[0], **({"late": 1} if n == 150 else {})} for n in range(160)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="row 151: it has a column 'late', which the first hundred rows"):
        predict_file(run, tmp_path / "t.jsonl", tmp_path / "late.jsonl", Wanted(["all"]), device="cpu")


def test_a_row_of_a_shard_with_a_broken_member_keeps_its_place_and_its_name(run, table_rows, tmp_path):
    members = {}
    for n in range(3):
        members[f"{n}.json"] = json.dumps({"picture": table_rows[n]["picture"], "question": "what is left ?"})
        members[f"{n}.txt"] = b"\xff" if n == 1 else "a"
    table = write_tar(tmp_path / "a.tar", members)
    out = tmp_path / "out.jsonl"
    predict_file(run, table, out, Wanted([f"{KEY},txt"]), device="cpu")
    found = read_back(out)
    assert [row["txt"] for row in found] == ["a", None, "a"]
    assert "1.txt isn't UTF-8" in found[1]["predicted_error"]
    predict_file(run, table, out, Wanted([KEY]), device="cpu", overwrite=True)
    assert [(row[KEY], row["predicted_error"]) for row in read_back(out)] == [
        ("0", None),
        ("1", None),
        ("2", None),
    ]


def test_evaluating_a_stream_is_evaluating_its_table(run, table_rows, tmp_path, capsys):
    good = [row for n, row in enumerate(table_rows) if n not in (3, 7, 19)]
    predictor = Predictor(run, device="cpu")
    right = [p.label == row["colour"] for p, row in zip(predictor.predict(good), good, strict=True)]
    for file in sources(good[:10] * 2, tmp_path / "in").values():
        result = evaluate(run, file, device="cpu", batch_size=3, workers=0, report=quiet)
        assert result["accuracy"] == pytest.approx(sum(right[:10]) / 10)
        assert result["rows"] == 20
    many = write_csv(good * 20, tmp_path / "many.csv")
    command = ["evaluate", str(run), "--data", str(many), "--device", "cpu", "--batch-size", "7", "--json"]
    results = []
    for workers in ("0", "3"):
        assert main([*command, "--workers", workers, "--by-pattern"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[0]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert results[0]["patterns"]["image+text"]["rows"] == 340
    bad = write_csv(table_rows, tmp_path / "bad.csv")
    with pytest.raises(
        UserError, match="3 of 20 rows can't be used, such as row 4, column 'picture': missing"
    ):
        evaluate(run, bad, device="cpu")
    lines = []
    assert evaluate(run, bad, skip_bad_rows=True, device="cpu", report=lines.append)["rows"] == 17
    assert "skipped 3 of 20 rows; first row 4" in lines[0]
    worst = write_csv([{**row, "colour": "mauve"} for row in table_rows], tmp_path / "worst.csv")
    with pytest.raises(
        UserError, match="none of its 20 rows can be used; the first is row 1, column 'colour'"
    ):
        evaluate(run, worst, skip_bad_rows=True, device="cpu", report=quiet)
    (tmp_path / "empty.csv").write_text("picture,question,colour\n")
    with pytest.raises(UserError, match=r"empty\.csv has no rows"):
        evaluate(run, tmp_path / "empty.csv", device="cpu")
