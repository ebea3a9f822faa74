"""A study's settings, and the runs it is made of."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from mope.config import Config, Section, explain
from mope.errors import UserError
from mope.files import read_yaml
from mope.methods import Method, find_method


class RowConfig(Section):
    """A row of the table."""

    method: str | None = None
    """A method's name; null for the base config's own."""
    name: str | None = None
    """What the row is called; null for the method's name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted key, over everything else."""
    series: str | None = None
    """Plot: the line it belongs to."""
    x: float | None = None
    """Plot: its place on the line."""
    paper: dict[str, Any] = Field(default_factory=dict)
    """What the paper reports, by metric, shown beside ours."""

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.name or self.method or "base"


class PlotConfig(Section):
    """The picture of a study."""

    kind: Literal["bars", "lines", "importance"] = "bars"
    """Bars per row, lines over `x` or the number of training rows, or experts' importance over training."""
    x: str = ""
    """What the x axis is called."""
    log: bool = False
    """Whether the x axis is logarithmic."""


class TuneConfig(Section):
    """The search for each row's learning rate, on validation rows."""

    trials: int = Field(default=4, ge=1)
    """Training runs per row; the first takes the method's own rate."""
    factor: float = Field(default=6.0, gt=1)
    """Rates are searched from the method's own over this to its own times this."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the search alone, such as fewer epochs."""


class Study(Section):
    """Rows, what they share, and what is measured."""

    title: str
    """Heading of the table."""
    about: str = ""
    """A sentence or two under it."""
    base: str
    """The config that rows start from, relative to the study's file."""
    rows: list[RowConfig] = Field(min_length=1)
    """The rows, in order."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted key, over the base and under the methods'."""
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    """Each row is run with each of these."""
    sizes: list[int] | None = None
    """Numbers of training rows; null for all there are."""
    metrics: list[str] | None = None
    """Metrics in the table, the deciding one first; null for the task's deciding one."""
    reference: str | None = None
    """The row that differences are taken to; null for none."""
    tuned: str | None = None
    """File of tuned settings, as `mope tune` writes it, relative to the study's file; null for none."""
    tune: TuneConfig = TuneConfig()
    """How `mope tune` searches."""
    plot: PlotConfig = PlotConfig()
    """The picture."""
    workers: int | None = Field(default=None, ge=1)
    """Runs at a time, such as 1 where times are compared; null for as many as the machine takes."""
    output: str
    """Folder of the runs and the table, relative to the study's file."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """What `--quick` changes: any of the keys above."""

    @classmethod
    def load(
        cls,
        file: str | Path,
        quick: bool = False,
        *,
        base: str | None = None,
        output: str | None = None,
    ) -> "Study":
        """Read a YAML file.

        Args:
            file: which.
            quick: whether in its small size.
            base: a config in the place of the study's own, such as one of another data set.
            output: a folder in the place of the study's own.

        Raises:
            UserError: the file, a key or a value is wrong, or it names a method there isn't.
        """
        file = Path(file)
        content = read_yaml(file, "study", "title, base, rows and output")
        if "inputs" in content:
            raise UserError(f"{file} is a config, not a study: a study names one as its `base`.")
        if quick:
            content = _merged(content, content.get("quick") or {})
        try:
            study = cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"In {file}: {explain(cls, error)}") from None
        for key in ("base", "output", "tuned"):
            if (path := getattr(study, key)) is not None:
                setattr(study, key, os.path.normpath(file.parent / path))
        study.base, study.output = base or study.base, output or study.output
        for settings in (study.settings, study.tune.settings, *(row.settings for row in study.rows)):
            _relative_to(file.parent, settings)
        study._check(file)
        return study

    def _check(self, file: Path) -> None:
        labels = [row.label for row in self.rows]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"In {file}: two rows are called '{label}': give one a name.")
        if self.reference is not None and self.reference not in labels:
            raise UserError(
                f"In {file}: the reference '{self.reference}' is no row: there are {', '.join(labels)}."
            )
        for row in self.rows:
            if row.method is not None:
                find_method(row.method)


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A study with its quick changes; settings are merged, all else is replaced."""
    merged = {**content, **changes}
    for key in ("settings", "tune"):
        if isinstance(content.get(key), dict) and isinstance(changes.get(key), dict):
            merged[key] = {**content[key], **changes[key]}
    return merged


def _relative_to(folder: Path, settings: dict[str, Any]) -> None:
    """Make the paths among settings relative to the current folder, in place."""
    for key, value in settings.items():
        is_path = key.startswith(("data.train", "data.validation", "data.test")) or key.endswith(".weights")
        if is_path and isinstance(value, str) and value.startswith("."):
            settings[key] = f"./{folder / value}"


class Cell:
    """One run of a study.

    Attributes:
        row: its row.
        size: number of training rows; None for all.
        seed: its seed.
        config: everything the run needs.
    """

    def __init__(self, row: RowConfig, size: int | None, seed: int, config: Config):
        self.row, self.size, self.seed, self.config = row, size, seed, config

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.output)

    @property
    def label(self) -> str:
        """What messages call it."""
        size = f", {self.size} training rows" if self.size else ""
        return f"{self.row.label}{size}, seed {self.seed}"


def method_of(row: RowConfig) -> Method | None:
    """A row's method; None for the base config's own."""
    return find_method(row.method) if row.method else None


def row_config(study: Study, row: RowConfig, tuned: Mapping[str, Any] | None = None) -> Config:
    """A row's config: the base, the study's settings, the method's, what was tuned, the row's own.

    Raises:
        UserError: a setting is wrong, or the method doesn't fit the base's inputs.
    """
    config = Config.load(study.base).with_settings(study.settings, "the study's settings")
    if (method := method_of(row)) is not None:
        config = method.apply(config)
    config = config.with_settings((tuned or {}).get(row.label, {}), f"{study.tuned}, {row.label}")
    return config.with_settings(row.settings, f"the row {row.label}")


def cells(study: Study) -> list[Cell]:
    """Every run of a study, seeds outermost, so that a table is whole as early as can be."""
    tuned = read_tuned(study)
    found = []
    for seed in study.seeds:
        for row in study.rows:
            config = row_config(study, row, tuned)
            for size in study.sizes or [None]:
                folder = Path(study.output) / slug(row.label) / f"seed{seed}"
                folder = folder.with_name(f"rows{size}-seed{seed}") if size else folder
                settings = {"training.seed": seed, "output": str(folder)}
                if size is not None:
                    settings["data.train_rows"] = size
                found.append(Cell(row, size, seed, config.with_settings(settings, row.label)))
    return found


def read_tuned(study: Study) -> dict[str, Any]:
    """Tuned settings by row; empty if the study has none yet."""
    if study.tuned is None or not Path(study.tuned).is_file():
        return {}
    content = yaml.safe_load(Path(study.tuned).read_text(encoding="utf-8"))
    return {row: entry["settings"] for row, entry in (content or {}).get("rows", {}).items()}


def slug(label: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-")
