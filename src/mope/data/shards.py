"""WebDataset shards: .tar files whose members `0001.jpg`, `0001.txt`, ... are a sample, a column each.

Only the members' headers are read before a sample is wanted. Nothing is unpacked: a member's name is a name
and never a path, and links are passed over.
"""

import glob
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mope.errors import UserError, shown
from mope.files import FOLDER, parse_json, what_is
from mope.media.cells import BadCell
from mope.remote import is_url, look_anew, matching, path_of

KEY = "__key__"
"""Column of the samples' names."""

_TEXTS = ("txt", "text", "transcript", "cls", "cls2", "class", "count", "index", "inx", "id")
_OBJECTS = ("json", "jsn")
_PICKLED = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib", "dill")
_MOST = 100_000  # files that one pattern may name
_END = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Sample:
    """A sample of a shard: where its members are.

    Attributes:
        shard: the file.
        key: the sample's name, which its members have in common.
        members: first byte and length of each, by what follows the first dot of its name, in lower case.
    """

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]

    def read(self, columns: Collection[str] | None = None) -> dict[str, Any]:
        """The sample as a row.

        Its name is in `__key__`; a text member is text, without blanks around it; each key of a JSON object
        is a column; any other member is bytes.

        Args:
            columns: the members that are wanted, beside objects; None for all.

        Raises:
            BadCell: a member isn't what its name says, or two hold the same column.
        """
        row: dict[str, Any] = {KEY: self.key}
        with self.shard.open("rb") as file:
            for name, (start, length) in self.members.items():
                kind = name.rpartition(".")[2]
                if columns is not None and name not in columns and kind not in _OBJECTS:
                    continue
                file.seek(start)
                content = file.read(length)
                cells = self._object(name, content) if kind in _OBJECTS else {name: content}
                if kind in _TEXTS:
                    cells = {name: self._text(name, content).strip()}
                if twice := [column for column in cells if column in row]:
                    raise BadCell(f"two values of '{twice[0]}', the second in {self._name(name)}")
                row.update(cells)
        return row

    def _name(self, member: str) -> str:
        return shown(f"{self.key}.{member}")

    def _text(self, name: str, content: bytes) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadCell(f"{self._name(name)} isn't UTF-8 ({error.reason} at byte {error.start})") from None

    def _object(self, name: str, content: bytes) -> dict[str, Any]:
        text = self._text(name, content)
        try:
            found = parse_json(text)
        except ValueError as error:
            raise BadCell(f"{self._name(name)}: {error}") from None
        if not isinstance(found, dict):
            raise BadCell(f'{self._name(name)} must be an object, such as {{"label": "..."}}')
        return found

    def __str__(self) -> str:
        return f"{self.shard}, sample {shown(self.key)}"


def read_shard(file: Path) -> Iterator[Sample]:
    """The samples of a shard: neighbouring members with the same name up to the first dot.

    Members without a dot, hidden ones and whatever is no file are passed over.

    Raises:
        UserError: it is no tar file, ends early, or has a pickled member.
    """
    key, members = None, {}
    for member in _members(file):
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if not (stem and extension and member.isfile() and not member.issparse()):
            continue
        extension, here = extension.lower(), f"{folder}{slash}{stem}"
        if extension.rpartition(".")[2] in _PICKLED:
            raise UserError(
                f"{file} has a pickled member, {shown(member.name)}: reading it could run code, so write "
                "what it holds as text, JSON or a picture."
            )
        if here != key:
            if key is not None:
                yield Sample(file, key, members)
            key, members = here, {}
        elif extension in members:
            raise UserError(f"{file} has two members {shown(member.name)}: rename one.")
        members[extension] = (member.offset_data, member.size)
    if key is not None:
        yield Sample(file, key, members)


def _members(file: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(file, "r:") as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - else all are kept
            end = tar.offset  # pyright: ignore[reportAttributeAccessIssue]
        # tarfile takes a broken header for the end.
        with file.open("rb") as stream:
            stream.seek(end)
            if stream.read(len(_END)) not in (_END, b""):
                raise tarfile.ReadError(f"a broken header at byte {end}")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{file} isn't a whole tar file: {error}.") from None
    except OSError as error:
        raise UserError(f"Can't read {file}: {error.strerror}.") from None


def find_files(source: str | Path) -> list[Path]:
    """The files that a path, a folder of .tar files or a pattern names, in order.

    A pattern has braces, `{000..012}` for numbers or `{a,b}`, or a shell's `*`, `?` and `[...]`. What braces
    name may not be there; a folder without .tar files is itself.

    Raises:
        UserError: there is nothing like a `*`, or too much; or it is elsewhere, and can't be reached.
    """
    look_anew()
    path = path_of(source)
    signs = r"[*\[]" if str(source).startswith("http") else r"[*?\[]"  # in an address `?` is another sign
    if not (is_url(source) and re.search(rf"{signs}|[{{]", str(source))):
        try:
            found = what_is(path)
        except OSError:  # such as a pattern that is longer than a name may be
            found = None
        if found == FOLDER:
            return sorted(path.glob("*.tar")) or [path]
        if found is not None:
            return [path]
    files = []
    for name in _expand(str(source)):
        if re.search(signs, name):
            # A pattern may be absolute.
            matches = matching(name) if is_url(name) else sorted(map(Path, glob.glob(name)))  # noqa: PTH207
            if not matches:
                raise UserError(f"There is no file like {name}.")
            files += matches
        else:
            files.append(path_of(name))
    return files


def _expand(pattern: str) -> list[str]:
    """A pattern without its braces: each of what they stand for."""
    names = [""]
    for place, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        if place % 2 == 0:
            choices = [part]
        elif numbers := re.fullmatch(r"(\d+)\.\.(\d+)", part):
            first, last = numbers.groups()
            if int(last) - int(first) >= _MOST:
                raise UserError(f"{pattern} names more than {_MOST:,} files.")
            choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        else:
            choices = part.split(",") if "," in part else [f"{{{part}}}"]
        if len(names) * len(choices) > _MOST:
            raise UserError(f"{pattern} names more than {_MOST:,} files.")
        names = [name + choice for name in names for choice in choices]
    if not names:
        raise UserError(f"{pattern} names no file: the first number is above the last.")
    return names


def is_shard(file: Path) -> bool:
    """Whether a name is that of a shard."""
    return file.suffix.lower() == ".tar"
