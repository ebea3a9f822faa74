"""WebDataset shards of the tiny tables, for the tests of shards and streams."""

import json
from pathlib import Path

import pytest
from shard_tester import write_tar

from mope.data.table import open_table


@pytest.fixture(scope="session")
def shards(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tables as shards: three of training rows, one of validation rows, and one of test rows."""
    root = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        rows = list(open_table(tables / f"{split}.csv"))
        for part in range(count):
            members = {}
            for number in range(part, len(rows), count):
                row = rows[number]
                members[f"{number:04}.png"] = (tables / row["picture"]).read_bytes()
                members[f"{number:04}.txt"] = row["question"] + "\n"
                members[f"{number:04}.json"] = json.dumps({"colour": row["colour"], "number": number})
            write_tar(root / f"{split}-{part:03}.tar", members)
    return root
