"""Tables that are broken as a whole: files by what is wrong with them, and what is said of it."""

import gzip
import io
import json
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

GOOD = b"text,label\none,a\ntwo,b\n"
LINE = b'{"text": "one", "label": "a"}\n'


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("t.csv", GOOD)
    return content.getvalue()


def parquet(*names: str, columns: list | None = None, rows: int = 2) -> bytes:
    content = io.BytesIO()
    columns = columns or [pyarrow.array(["a", "b"][:rows], pyarrow.string()) for _ in names]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, list(names)), content)
    return content.getvalue()


def halved_text() -> bytes:
    """Text that is no UTF-8, in a column that says it is."""
    bad = pyarrow.array([b"\xff\xfe", b"x"]).view(pyarrow.string())
    return parquet("text", "label", columns=[bad, pyarrow.array(["a", "b"])])


def flipped(content: bytes) -> bytes:
    """With some bytes of the first page changed."""
    return content[:8] + bytes(255 - byte for byte in content[8:40]) + content[40:]


def tar(**members: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


TAR = tar(a_txt=b"one", a_cls=b"a", b_txt=b"two", b_cls=b"b")

FILES: dict[str, tuple[str, bytes, str]] = {
    # CSV
    "empty": ("t.csv", b"", "isn't a CSV file: it is empty"),
    "blank lines alone": ("t.csv", b"\n\n\r\n", "isn't a CSV file: it is empty"),
    "a byte order mark alone": ("t.csv", b"\xef\xbb\xbf", "isn't a CSV file: it is empty"),
    "a header alone": ("t.csv", b"text,label\n", "has no rows"),
    "a header without a line end": ("t.csv", b"\xef\xbb\xbftext,label", "has no rows"),
    "more cells in all rows": ("t.csv", b"text,label\na,b,c\nd,e,f\n", "line 2: 3 cells, more cells than"),
    "more cells in a row": (
        "t.csv",
        GOOD + b"one, two,a\n",
        "line 4: 3 cells, .*quote cells that hold commas",
    ),
    "fewer cells in a row": ("t.csv", GOOD + b"three\n", "line 4: 1 of 2 cells"),
    "cut off": ("t.csv", b"text,label,n\none,a,1\ntwo,", "line 3: 2 of 3 cells; the row is cut off"),
    "more cells behind a cell of two lines": ("t.csv", b'text,label\n"a\nb",c\nd,e,f\n', "line 4: 3 cells"),
    "a quote never closed": (
        "t.csv",
        GOOD + b'"three,c\n',
        "line 4: not CSV; a quote is opened here and never",
    ),
    "a quote never closed, rows before the end": ("t.csv", b'text,label\n"one,a\ntwo,b\n', "line 2: .*never"),
    "a quote never closed in the header": ("t.csv", b'"text,label\none,a\n', "line 1: .*never closed"),
    "text behind a quote": ("t.csv", b'text,label\n"one"x,a\n', "line 2: .* goes on after its closing quote"),
    "quotes with backslashes": ("t.csv", b'text,label\n"say \\"hi\\"",a\n', "inside a cell is written twice"),
    "a lost quote that takes rows": ("t.csv", b'text,label\n"one,a\ntwo,b\n"three",c\n', "line 2: not CSV"),
    "a NUL in a cell": ("t.csv", b"text,label\none,a\nt\0o,b\n", "line 3: there are NUL bytes"),
    "NULs at the end, as after a crash": ("t.csv", GOOD * 3 + bytes(4096), "line 10: there are NUL bytes"),
    "nothing but NULs": ("t.csv", bytes(5000), "line 1: there are NUL bytes"),
    "two columns of one name": ("t.csv", b"text,label,text\n1,2,3\n", "line 1: two columns are named 'text'"),
    "two columns of one long name": (
        "t.csv",
        b"%b,%b\n1,2\n" % (b"x" * 9999, b"x" * 9999),
        r"named 'x+\.\.\.'",
    ),
    "Latin-1": ("t.csv", GOOD + "naïve,b\n".encode("latin-1"), "line 4: not UTF-8|isn't in UTF-8"),
    "gb18030": ("t.csv", GOOD + "名前,b\n".encode("gb18030"), "line 4: not UTF-8|isn't in UTF-8"),
    "UTF-16 cut in a character": ("t.csv", GOOD.decode().encode("utf-16")[:-1], "UTF-16"),
    "random bytes": ("t.csv", bytes(range(1, 256)) * 9, "UTF-8"),
    "a ZIP file": ("t.csv", zipped(), "is a ZIP or Excel file, not the text"),
    "a gzip file": ("t.csv", gzip.compress(GOOD), "is a gzip file, not the text"),
    "a Parquet file": ("t.csv", parquet("text", "label"), "is a Parquet file, not the text"),
    "an old Excel file": ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an Excel file, not"),
    "a PDF": ("t.csv", b"%PDF-1.7\n" + bytes(range(256)), "is a PDF file, not"),
    "a picture": ("t.csv", b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture, not"),
    "a database": ("t.csv", b"SQLite format 3\0" + bytes(600), "is an SQLite file, not"),
    "semicolons in the header alone": (
        "t.csv",
        b"text;label\none,a\n",
        "one column, 'text;label', with semicol",
    ),
    "tabs in the header alone": ("t.csv", b"text\tlabel\none  a\n", "with tabs in its name, and other rows"),
    "more cells between semicolons": ("t.csv", b"text;label\none;a\ntwo;b;c\n", "line 3: 3 cells"),
    "two columns of one name between tabs": (
        "t.tsv",
        b"label\tlabel\none\ta\n",
        "two columns are named 'label'",
    ),
    "fewer cells between tabs": ("t.tsv", b"text\tlabel\none\n", "line 2: 1 of 2 cells"),
    "an empty TSV file": ("t.tsv", b"", "it is empty"),
    "line ends of old Macs, more cells": ("t.csv", b"text,label\rone,a\rtwo,b,c\r", "line 3: 3 cells"),
    "a separator that is said, more cells": ("t.csv", b"sep=;\ntext;label\none;a;b\n", "line 3: 3 cells"),
    # CSV that is read, and isn't the table
    "no header": ("t.csv", b"one,a\ntwo,b\n", "has no column 'text': it has one, a"),
    "a header in other letters": ("t.csv", b"Text,Label\none,a\n", "did you mean 'Text'"),
    "blanks in the header": ("t.csv", b"text , label\none,a\n", "did you mean 'text '"),
    "bars between cells": ("t.csv", b"text|label\none|a\n", "has no column 'text'"),
    "a web page": (
        "t.csv",
        b"<!DOCTYPE html>\n<html>\n<body>\n</html>\n",
        "no column 'text': it has <!DOCTYPE",
    ),
    "three thousand columns": (
        "t.csv",
        b",".join(b"column%d" % n for n in range(3_000)) + b"\n" + b"," * 2_999 + b"\n",
        "it has column0, .*, column11, ...",
    ),
    "a name of 200,000 characters": ("t.csv", b"x" * 200_000 + b"\none\n", "no column 'text'"),
    "JSON": ("t.csv", LINE, "has no rows"),
    # JSONL
    "an empty JSONL file": ("t.jsonl", b"", "has no rows"),
    "blank lines of JSONL": ("t.jsonl", b"\n \n\r\n", "has no rows"),
    "a cut-off object": ("t.jsonl", LINE + LINE[:17], "line 2: not JSON"),
    "a list": ("t.jsonl", b"[" + LINE.strip() + b"]\n", "line 1: a row must be an object"),
    "a list over lines": ("t.jsonl", b"[\n" + LINE + b"]\n", "line 1: not JSON"),
    "a number for a row": ("t.jsonl", LINE + b"3\n", "line 2: a row must be an object"),
    "null for a row": ("t.jsonl", b"null\n", "line 1: a row must be an object"),
    "Python's quotes": ("t.jsonl", b"{'text': 'one'}\n", "line 1: not JSON"),
    "a comma too many": ("t.jsonl", b'{"text": "one",}\n', "line 1: not JSON"),
    "two objects in a line": ("t.jsonl", LINE.strip() + LINE, "line 1: not JSON .Extra data"),
    "a line end in a text": ("t.jsonl", b'{"text": "one\ntwo"}\n', "line 1: not JSON"),
    "a NUL in JSONL": ("t.jsonl", LINE + b'{"text": "t\0o"}\n', "line 2: there are NUL bytes"),
    "lists in lists, 100,000 deep": ("t.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: nested too deeply"),
    "objects in objects, 100,000 deep": ("t.jsonl", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
    "lists in lists, 300 deep": ("t.jsonl", b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "nested too deeply"),
    "a key twice": ("t.jsonl", LINE + b'{"text": "a", "text": "b"}\n', "line 2: two values of 'text'"),
    "a key twice, inside": ("t.jsonl", b'{"text": {"a": 1, "a": 2}}\n', "line 1: two values of 'a'"),
    "a number of 5,000 digits": (
        "t.jsonl",
        b'{"text": ' + b"9" * 5000 + b"}\n",
        "line 1: a number of too many",
    ),
    "JSONL in Latin-1": ("t.jsonl", '{"text": "naïve"}\n'.encode("latin-1"), "UTF-8"),
    "a gzip file of JSONL": ("t.jsonl", gzip.compress(LINE), "is a gzip file"),
    "CSV in a JSONL file": ("t.jsonl", GOOD, "line 1: not JSON"),
    # Parquet
    "an empty Parquet file": ("t.parquet", b"", "isn't a Parquet file"),
    "text in a Parquet file": ("t.parquet", GOOD, "isn't a Parquet file"),
    "Parquet's mark alone": ("t.parquet", b"PAR1" * 4, "isn't a Parquet file"),
    "a Parquet file cut off": ("t.parquet", parquet("text", "label")[:-20], "isn't a Parquet file"),
    "a Parquet file that lacks its middle": (
        "t.parquet",
        parquet("text", "label")[:30] + parquet("text", "label")[60:],
        "isn't a Parquet file",
    ),
    "a Parquet file with bytes changed": (
        "t.parquet",
        flipped(parquet("text", "label")),
        "isn't a Parquet file",
    ),
    "a Parquet file without rows": ("t.parquet", parquet("text", "label", rows=0), "has no rows"),
    "two columns of one name in Parquet": (
        "t.parquet",
        parquet("text", "text"),
        "two columns are named 'text'",
    ),
    "Parquet text that isn't UTF-8": (
        "t.parquet",
        halved_text(),
        "isn't a Parquet file that can be read: .*UTF",
    ),
    # Shards
    "an empty shard": ("t.tar", b"", "isn't a whole tar file|has no rows"),
    "a shard that is text": ("t.tar", GOOD * 50, "isn't a whole tar file"),
    "a shard cut off": ("t.tar", TAR[:1100], "isn't a whole tar file|has no rows"),
    "a shard with a broken header": (
        "t.tar",
        TAR[:2048] + b"x" * 512 + TAR[2560:],
        "broken header|whole tar",
    ),
    "a packed shard": ("t.tar", gzip.compress(TAR), "isn't a whole tar file"),
    "a shard with a pickled member": ("t.tar", tar(a_pkl=b"x"), "has a pickled member"),
    "a shard with a member twice": ("t.tar", tar(a_txt=b"x", a_TXT=b"y"), "two members"),
    "a shard without samples": ("t.tar", tar(README=b"x"), "has no rows"),
    "a shard with broken JSON": ("t.tar", tar(a_json=b"{"), "a.json: not JSON"),
    "a shard with a key twice": (
        "t.tar",
        tar(a_json=b'{"text": 1, "text": 2}'),
        "a.json: two values of 'text'",
    ),
    "a shard with JSON 100,000 deep": ("t.tar", tar(a_json=b"[" * 100_000), "a.json: nested too deeply"),
    "a shard with text in Latin-1": ("t.tar", tar(a_txt="naïve".encode("latin-1")), "a.txt isn't UTF-8"),
    # Names
    "no kind of table": ("t.xlsx", b"", "no table this library reads|can't be streamed"),
    "no ending": ("t", GOOD, "no table this library reads|can't be streamed"),
}
"""What is wrong: a file's name, its content, and what is said."""

AS_TABLES: dict[str, tuple[str, bytes, str]] = {
    "numbers and objects": (
        "t.jsonl",
        b'{"text": 1}\n{"text": {"a": 2}}\n',
        "row 2: 'text' is a dict, unlike",
    ),
    "texts and lists": ("t.jsonl", b'{"text": "a"}\n{"text": ["a"]}\n', "row 2: 'text' is a list, unlike"),
    "half a character": ("t.jsonl", LINE + b'{"text": "\\ud83d"}\n', "row 2: 'text' has half a character"),
    "half a character in a name": ("t.jsonl", b'{"\\ud83d": 1}\n', "cells hold what no table can"),
}
"""The same, of what streams take, for they read each row by itself."""


def saved(folder: Path) -> Path:
    Dataset.from_list([{"text": "one", "label": "a"}] * 2).save_to_disk(str(folder / "t"))
    return folder / "t"


def changed(folder: Path, name: str, content: bytes | None) -> Path:
    """A saved dataset with another file, or without it."""
    file = next(saved(folder).glob(name))
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return folder / "t"


def elsewhere(folder: Path) -> Path:
    state = json.loads((saved(folder) / "state.json").read_text())
    state["_data_files"] = [{"filename": "../../other.arrow"}]
    (folder / "t" / "state.json").write_text(json.dumps(state))
    return folder / "t"


def several(folder: Path) -> Path:
    DatasetDict({"a": Dataset.from_list([{"text": "one"}])}).save_to_disk(str(folder / "t"))
    return folder / "t"


def pipe(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    return folder / name


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "t.csv"))
    return folder / "t.csv"


def link(folder: Path, target: str, name: str = "t.csv") -> Path:
    (folder / name).symlink_to(target)
    return folder / name


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "none.csv", "There is no table"),
    "nothing there, in a folder that isn't": (lambda folder: folder / "a" / "b.csv", "There is no table"),
    "a file for a folder": (lambda folder: Path(__file__) / "t.csv", "There is no table"),
    "a link to nothing": (lambda folder: link(folder, "nowhere.csv"), "There is no table"),
    "a link to itself": (
        lambda folder: link(folder, "t.csv"),
        "Can't read .*symbolic links|There is no table",
    ),
    "a name that is too long": (
        lambda folder: folder / f"{'x' * 5000}.csv",
        "Can't read .*: File name too long",
    ),
    "a name with a NUL": (lambda folder: folder / "t\0.csv", "There is no table"),
    "a pattern of nothing": (lambda folder: folder / "*.tar", "There is no file like"),
    "a pattern of too much": (lambda folder: folder / "{0..999999}.tar", "names more than"),
    "several CSV files": (lambda folder: folder / "{a,b}.csv", "There is no table|names several files"),
    "a pipe": (lambda folder: pipe(folder, "t.csv"), "is a named pipe, not a table"),
    "a pipe of JSONL": (lambda folder: pipe(folder, "t.jsonl"), "is a named pipe, not a table"),
    "a pipe of Parquet": (lambda folder: pipe(folder, "t.parquet"), "is a named pipe, not a table"),
    "a pipe of a shard": (lambda folder: pipe(folder, "t.tar"), "is a named pipe, not a table"),
    "a pipe among shards": (
        lambda folder: pipe(folder, "shards/t.tar").parent,
        "is a named pipe, not a table",
    ),
    "a pipe in a saved dataset": (lambda folder: pipe(saved(folder), "x.arrow").parent, "is a named pipe"),
    "a socket": (listening, "is a socket, not a table"),
    "an endless device": (lambda folder: link(folder, "/dev/zero"), "is a device, not a table"),
    "an empty device": (lambda folder: link(folder, "/dev/null"), "is a device, not a table"),
    "a device's own name": (lambda folder: Path("/dev/zero"), "is a device, not a table"),
    "a file that can't be read": (lambda folder: link(folder, "/proc/self/mem"), "Can't read .*error"),
    "a folder for a file": (lambda folder: made(folder, "t.csv"), "holds no saved dataset"),
    "a folder for a shard": (
        lambda folder: made(folder, "t.tar"),
        "Can't read .*: Is a directory|holds no saved dataset",
    ),
    "an empty folder": (lambda folder: made(folder, "t"), "holds no saved dataset"),
    "several saved datasets": (several, r"holds several datasets \(a\)"),
    "a saved dataset without its rows": (
        lambda folder: changed(folder, "*.arrow", None),
        "holds no saved dataset|can't be read",
    ),
    "a saved dataset whose rows are cut off": (
        lambda folder: changed(folder, "*.arrow", b"ARROW"),
        "can't be read",
    ),
    "a saved dataset with a broken state": (
        lambda folder: changed(folder, "state.json", b"{"),
        "can't be read",
    ),
    "a saved dataset with an empty state": (
        lambda folder: changed(folder, "state.json", b"{}"),
        "can't be read",
    ),
    "a saved dataset of unknown types": (
        lambda folder: changed(folder, "dataset_info.json", b'{"features": {"text": {"_type": "Evil"}}}'),
        "can't be read",
    ),
    "a saved dataset of files elsewhere": (elsewhere, "it names a file elsewhere"),
}
"""What is wrong with a path: makes it in a folder, and what is said."""
