"""Programs of a Debian release: icon, summary and main category (AppStream metadata, "DEP-11")."""

import gzip
import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mope.datasets.base import Dropped, Published, Rows, held_out
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

_PROGRAMS, _ICONS = "Components-amd64.yml.gz", f"icons-{ICON}x{ICON}.tar.gz"


class DebianApps(Published):
    """What is a program for? Its icon and the line that sums it up, as its authors published them.

    Programs with several main categories are left out, and those with another package's icon. A tenth of
    the packages is held out for validation and three tenths for testing, by a hash of their names: programs
    of one package are alike.
    """

    name = "debian-apps"
    title = "Debian 13's programs"
    where = "any Debian mirror, dists/trixie/main/dep11"
    licence = "texts mostly CC0-1.0 or FSFAP, icons as each program"
    files: Mapping[str, str] = {
        _PROGRAMS: "AppStream metadata of the programs",
        _ICONS: f"their icons of {ICON} x {ICON} pixels",
    }
    counts: Mapping[str, int] = {"all": 1699}
    label = "category"

    def splits(self, folder: Path, dropped: Dropped) -> dict[str, Rows]:
        icons = read_icons(self.need(folder, _ICONS))
        programs = list(_usable(read_programs(self.need(folder, _PROGRAMS)), icons, dropped))
        packages = sorted({program.package for program in programs})
        test = held_out(packages, round(0.3 * len(packages)))
        validation = held_out([name for name in packages if name not in test], round(0.1 * len(packages)))

        def rows(split: str) -> Rows:
            for one in programs:
                held = (
                    "test" if one.package in test else "validation" if one.package in validation else "train"
                )
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
        name, summary: in English; None where there is none.
        package: whose it is.
        icon: its file's name; empty for none of the right size.
        categories: main ones, sorted.
    """

    name: str
    summary: str | None
    package: str
    icon: str
    categories: list[str]


def read_programs(file: Path) -> Iterator[Program]:
    """The graphical programs of a release.

    Raises:
        UserError: the file isn't gzipped YAML, or lists none.
    """
    found = 0
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for entry in yaml.load_all(stream, loader):
                if isinstance(entry, dict) and entry.get("Type") == "desktop-application":
                    found += 1
                    yield _program(entry)
    except (OSError, EOFError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} isn't gzipped YAML: {error}.") from None
    if not found:
        raise UserError(f"{file} lists no program.")


def _program(entry: Mapping[str, Any]) -> Program:
    icons = (entry.get("Icon") or {}).get("cached") or []
    names = [
        icon.get("name")
        for icon in icons
        if icon.get("width") == icon.get("height") == ICON and icon.get("scale", 1) == 1
    ]
    found = {"AudioVideo" if one in ("Audio", "Video") else one for one in entry.get("Categories") or []}
    return Program(
        str((entry.get("Name") or {}).get("C", entry.get("ID"))),
        (entry.get("Summary") or {}).get("C"),
        str(entry.get("Package")),
        names[0] if names else "",
        sorted(found & CATEGORIES),
    )


def read_icons(file: Path) -> dict[str, bytes]:
    """PNG files by their names.

    Raises:
        UserError: the file isn't a gzipped tar.
    """
    try:
        with tarfile.open(file, "r:gz") as archive:
            found = ((member.name, archive.extractfile(member)) for member in archive if member.isfile())
            return {Path(name).name: stream.read() for name, stream in found if stream is not None}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{file} isn't a gzipped tar archive: {error}.") from None


def _usable(programs: Iterator[Program], icons: Mapping[str, bytes], dropped: Dropped) -> Iterator[Program]:
    owners: dict[bytes, str] = {}
    for one in programs:
        if len(one.categories) != 1:
            dropped.add("no main category" if not one.categories else "several main categories", one.name)
        elif not one.summary:
            dropped.add("no summary", one.name)
        elif one.icon not in icons:
            dropped.add("no icon", one.name)
        else:
            # Else a picture would be in two splits.
            digest = hashlib.sha256(icons[one.icon]).digest()
            if owners.setdefault(digest, one.package) == one.package:
                yield one
            else:
                dropped.add("another package's icon", one.name)
