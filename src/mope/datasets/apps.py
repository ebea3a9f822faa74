"""Programs of a Debian release: icon, summary and main category (AppStream metadata, "DEP-11")."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mope.datasets.base import Dropped, Published, Rows, held_out, words_of
from mope.errors import UserError

CATEGORIES = {
    "AudioVideo",
    "Development",
    "Education",
    "Game",
    "Graphics",
    "Network",
    "Office",
    "Science",
    "Settings",
    "System",
    "Utility",
}
"""The registered main categories of freedesktop.org's menus; Audio and Video are kinds of AudioVideo."""

ICON = 64
"""Pixels of the icons that are taken, the smallest size that every program must have."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PROGRAMS, _ICONS = "Components-amd64.yml.gz", f"icons-{ICON}x{ICON}.tar.gz"


class DebianApps(Published):
    """What is a program for? Its icon and the line that sums it up, as its authors published them.

    Programs with several main categories are left out. Packages that have an icon or a summary in common
    stay together: of these groups a tenth is held out for validation and three tenths for testing, by a hash
    of the first one's name.
    """

    name = "debian-apps"
    title = "Debian 13's programs"
    where = "any Debian mirror, dists/trixie/main/dep11"
    licence = "texts mostly CC0-1.0 or FSFAP, icons as each program"
    files: Mapping[str, str] = {
        _PROGRAMS: "AppStream metadata of the programs",
        _ICONS: f"their icons of {ICON} x {ICON} pixels",
    }
    counts: Mapping[str, int] = {"all": 1752}
    label = "category"

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        icons = read_icons(self.need(folder, _ICONS))
        programs = list(_usable(read_programs(self.need(folder, _PROGRAMS)), icons, dropped))
        groups = _groups([(one.package, icons[one.icon], words_of(one.summary)) for one in programs])
        names = sorted(set(groups))
        test = held_out(names, round(0.3 * len(names)))
        validation = held_out([name for name in names if name not in test], round(0.1 * len(names)))

        def rows(split: str) -> Rows:
            for one, group in zip(programs, groups, strict=True):
                held = "test" if group in test else "validation" if group in validation else "train"
                if held == split:
                    yield {
                        "image": icons[one.icon],
                        "summary": one.summary,
                        "category": one.categories[0],
                        "name": one.name,
                        "package": one.package,
                    }

        return {split: rows(split) for split in ("train", "validation", "test")}


class Program(NamedTuple):
    """A graphical program.

    Attributes:
        name, summary: in English; an empty summary where there is none.
        package: whose it is.
        icon: its file's name; empty for none of the right size.
        categories: main ones, sorted.
    """

    name: str
    summary: str
    package: str
    icon: str
    categories: list[str]


def read_programs(file: Path) -> Iterator[Program]:
    """The graphical programs of a release.

    Raises:
        UserError: the file isn't gzipped YAML, lists none, or has one that isn't as AppStream has them.
    """
    found = 0
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for entry in yaml.load_all(stream, loader):
                if isinstance(entry, dict) and entry.get("Type") == "desktop-application":
                    found += 1
                    yield _program(entry)
    except (OSError, EOFError, ValueError, zlib.error, yaml.YAMLError) as error:
        raise UserError(f"{file} isn't gzipped YAML: {' '.join(str(error).split())}.") from None
    except (AttributeError, TypeError):
        raise UserError(f"{file}: program {found} isn't described as AppStream has it.") from None
    if not found:
        raise UserError(f"{file} lists no program.")


def _program(entry: Mapping[str, Any]) -> Program:
    icons = (entry.get("Icon") or {}).get("cached") or []
    names = [
        icon.get("name")
        for icon in icons
        if icon.get("width") == icon.get("height") == ICON and icon.get("scale", 1) == 1
    ]
    if not isinstance(entry.get("Package"), str) or not isinstance(entry.get("Categories") or [], list):
        raise TypeError
    found = {"AudioVideo" if one in ("Audio", "Video") else one for one in entry.get("Categories") or []}
    return Program(
        _english(entry.get("Name")) or str(entry.get("ID")),
        _english(entry.get("Summary")),
        entry["Package"],
        str(names[0]) if names else "",
        sorted(found & CATEGORIES),
    )


def _english(texts: Mapping[str, Any] | None) -> str:
    found = (texts or {}).get("C")
    return found.strip() if isinstance(found, str) else ""


def read_icons(file: Path) -> dict[str, bytes]:
    """PNG files by their names.

    Raises:
        UserError: the file isn't a gzipped tar.
    """
    try:
        # Read whole, so that its checksum is looked at: a damaged archive would seem to be a shorter one.
        content = io.BytesIO(gzip.decompress(file.read_bytes()))
        with tarfile.open(fileobj=content, mode="r:") as archive:
            members = ((member.name, archive.extractfile(member)) for member in archive if member.isfile())
            files = {Path(name).name: stream.read() for name, stream in members if stream is not None}
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{file} isn't a gzipped tar archive: {error}.") from None
    return {name: content for name, content in files.items() if content.startswith(_PNG)}


def _usable(programs: Iterator[Program], icons: Mapping[str, bytes], dropped: Dropped) -> Iterator[Program]:
    for one in programs:
        if len(one.categories) != 1:
            dropped.add("no main category" if not one.categories else "several main categories", one.name)
        elif not one.summary:
            dropped.add("no summary", one.name)
        elif one.icon not in icons:
            dropped.add("no icon", one.name)
        else:
            yield one


def _groups(rows: Sequence[tuple[str, bytes, str]]) -> list[str]:
    """Of each (package, icon, summary) the first package, by name, that it is tied to.

    Rows are tied that have one of the three in common, or are both tied to another.
    """
    above: dict[Hashable, Hashable] = {}

    def top(node: Hashable) -> Hashable:
        while above.setdefault(node, node) != node:
            node = above[node]
        return node

    for row in rows:
        nodes = list(enumerate(row))
        for node in nodes[1:]:
            above[top(node)] = top(nodes[0])
    first: dict[Hashable, str] = {}
    for package in sorted(package for package, _, _ in rows):
        first.setdefault(top((0, package)), package)
    return [first[top((0, package))] for package, _, _ in rows]
