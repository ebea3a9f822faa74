"""Rows held out for validation."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mope.config import Config
from mope.data.holdout import groups_of, hold_out
from mope.data.table import MemoryTable, open_table
from mope.errors import UserError


def held_out(table, config, share=0.25, seed=0, **data):
    """Row numbers of both parts, and what is said."""
    said = []
    config = config.model_copy(deep=True)
    config.data = config.data.model_copy(update={"validation_share": share, **data})
    config.training.seed = seed
    split = hold_out({"train": table}, config, said.append)
    return split["train"].numbers, split["validation"].numbers, said[0]


def test_rows_are_held_out_by_seed_and_none_is_lost(tables, config):
    train = open_table(tables / "train.csv")
    rest, held, said = held_out(train, config)
    assert sorted(rest + held) == list(train.numbers)
    assert len(held) == 12
    assert held_out(train, config)[1] == held
    assert held_out(train, config, seed=1)[1] != held
    assert "12 of 48 training rows are held out, by seed 0, with the labels' shares." in said
    with pytest.raises(UserError, match="too few rows"):
        held_out(train.select([0]), config, share=0.1)


def test_rows_about_one_picture_are_held_out_together(config):
    """Paths, embedded pictures, and a column of the user's choice."""
    rows = [
        {
            "picture": f"./{n // 4}.png" if n % 2 else f"{n // 4}.png",
            "question": str(n),
            "colour": "ab"[n % 2],
        }
        for n in range(80)
    ]
    for pictures in ("path", "bytes"):
        if pictures == "bytes":
            rows = [{**row, "picture": {"bytes": b"x%d" % (n // 4)}} for n, row in enumerate(rows)]
        rest, held, said = held_out(MemoryTable(rows), config, share=0.1)
        assert not {(n - 1) // 4 for n in held} & {(n - 1) // 4 for n in rest}
        assert len(held) == 8
        assert "stay so (20 groups)" in said
    people = [{**row, "asker": n % 20 // 8} for n, row in enumerate(rows)]
    for row, number in zip(people, range(80), strict=True):
        row["picture"] = f"{number}.png"
        row["asker"] = number % 10
    rest, held, said = held_out(MemoryTable(people), config, share=0.1, group="asker")
    assert not {(n - 1) % 10 for n in held} & {(n - 1) % 10 for n in rest}
    assert "(10 groups)" in said
    days = [{**row, "asker": date(2026, 11, 1 + row["asker"])} for row in people]
    rest, held, said = held_out(MemoryTable(days), config, share=0.1, group="asker")
    assert not {(n - 1) % 10 for n in held} & {(n - 1) % 10 for n in rest}
    assert "(10 groups)" in said
    with pytest.raises(UserError, match="no column 'nobody'"):
        held_out(MemoryTable(people), config, group="nobody")
    alike = [{**row, "picture": "one.png"} for row in rows]
    with pytest.raises(UserError, match="all of its rows belong together; name validation rows"):
        held_out(MemoryTable(alike), config, share=0.1)


def test_a_chain_of_shared_pictures_is_one_group(config):
    """Two inputs of pictures: rows that share either are linked, over any number of rows."""
    content = config.model_dump()
    content["inputs"]["other"] = {**content["inputs"]["image"], "column": "other"}
    links = [("a", "b"), ("c", "b"), ("c", "d"), ("e", "f"), ("g", "f"), (None, "h"), (None, "i")]
    rows = [{"picture": one, "other": two} for one, two in links]
    assert groups_of(MemoryTable(rows), Config.parse(content)) == [0, 0, 0, 3, 3, 5, 6]


@given(
    labels=st.lists(st.sampled_from("aaaaabbbc"), min_size=60, max_size=150),
    together=st.integers(1, 3),
    share=st.sampled_from([0.1, 0.25, 0.3]),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=40)
def test_what_is_held_out_is_of_the_size_and_has_the_shares_of_all(labels, together, share, seed):
    shape = {"kind": "image", "column": "picture", "encoder": {"weights": "none/none"}}
    config = Config.parse({"inputs": {"image": shape}, "fusion": {"main": "image"}})
    rows = [{"picture": f"{n // together}", "label": label} for n, label in enumerate(labels)]
    rest, held, _ = held_out(MemoryTable(rows), config, share, seed)
    assert sorted(rest + held) == list(range(1, len(rows) + 1))
    # A share of the rows needn't be a whole number: hypothesis found 6.3 where groups of two make 6.
    assert abs(len(held) - share * len(rows)) < 3 * together + 1
    for label in set(labels):
        mine = sum(rows[n - 1]["label"] == label for n in held)
        assert abs(mine - share * labels.count(label)) < 3 * together + 1
