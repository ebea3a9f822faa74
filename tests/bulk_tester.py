"""Tables and outputs in every form, written and read."""

import csv
import json
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, load_from_disk
from shard_tester import write_tar

OUTPUTS = (".csv", ".jsonl", ".parquet", "")


def write_csv(rows: list[dict], file: Path) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def sources(rows: list[dict], folder: Path) -> dict[str, Path]:
    """The rows as a file of every kind."""
    folder.mkdir(exist_ok=True)
    write_csv(rows, folder / "t.csv")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(folder / "t.parquet"))
    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    for half in range(2):
        members = {f"{n:02}.json": json.dumps(rows[n]) for n in range(half * 10, half * 10 + 10)}
        write_tar(folder / f"t{half}.tar", members)
    return {name: folder / name for name in ("t.csv", "t.jsonl", "t.parquet", "saved", "t{0..1}.tar")}


def read_back(out: Path) -> list[dict]:
    """The rows of an output; those of CSV are texts."""
    if out.suffix == ".csv":
        with out.open(newline="") as stream:
            return list(csv.DictReader(stream))
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    return list(load_from_disk(out)) if not out.suffix else pyarrow.parquet.read_table(out).to_pylist()
