"""A study's settings, and the runs it is made of."""

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from mope.config import Config, Section, explain
from mope.errors import UserError
from mope.files import read_yaml
from mope.methods import Method, find_method
from mope.remote import is_url
from mope.studies.runs import SPLITS, TEST, After
from mope.studies.sets import labels_of, merged, of_set

SEED = "{seed}"
_PATHS = ("data.train", "data.validation", "data.test", "training.begin_from")


class RowConfig(Section):
    """A row of the table."""

    method: str | None = None
    """A method's name; null for the base config's own."""
    name: str | None = None
    """What the row is called; null for the method's name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted key, over everything else; `{seed}` in one stands for the run's."""
    series: str | None = None
    """Plot: the line it belongs to."""
    x: float | None = None
    """Plot: its place on the line."""
    paper: dict[str, Any] = Field(default_factory=dict)
    """What the paper reports, by column of the table, shown beside ours."""

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.name or self.method or "base"


class Claim(Section):
    """What the paper's text says of a row against others: that it is better."""

    better: str
    """The row."""
    than: list[str] = Field(min_length=1)
    """The rows that it is said to be better than."""
    says: str
    """The paper's words."""
    section: str
    """Where they stand, such as IV-D."""
    sets: list[str] | None = None
    """The data sets they are about: names of `sets`, or the study's own `published`; null for all."""
    grows: bool = False
    """Whether what is claimed is a larger difference with the most training rows than with the fewest."""


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
    sizes: list[PositiveInt | None] | None = None
    """Numbers of training rows, a null among them for all there are; null for all alone."""
    folds: list[str] | None = Field(default=None, min_length=1)
    """Folders of the base's tables, a fold each, beside the folder that it names; null for that one alone."""
    evaluate: list[str] | None = Field(default=None, min_length=1)
    """Splits that each run is measured on, tables beside the test table; null for the test rows. A column of
    the table is then called `SPLIT METRIC`."""
    metrics: list[str] | None = None
    """Metrics in the table, the deciding one first; null for the task's deciding one."""
    page: PositiveInt | None = None
    """Test rows that a page on each run looks at, as `mope explain` writes it; null for no page."""
    reference: str | None = None
    """The row that differences are taken to; null for none."""
    tuned: str | None = None
    """File of tuned settings, as `mope tune` writes it, relative to the study's file; null for none."""
    tune: TuneConfig = TuneConfig()
    """How `mope tune` searches."""
    plot: PlotConfig = PlotConfig()
    """The picture."""
    published: str | None = None
    """The published data set its tables are made from, as `mope data prepare` calls it; null for none."""
    claims: list[Claim] = Field(default_factory=list)
    """What the paper's text says of the rows, which `mope reproduce` judges."""
    workers: int | None = Field(default=None, ge=1)
    """Runs at a time, such as 1 where times are compared; null for as many as the machine takes."""
    output: str
    """Folder of the runs and the table, relative to the study's file."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """What `--quick` changes: any of the keys above."""
    sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Other data sets: what `--set NAME` changes, any of the keys above, and beside them `paper`, what the
    paper has on it by row, and `leave_out`, rows that it hasn't."""

    @classmethod
    def load(
        cls,
        file: str | Path,
        quick: bool = False,
        data_set: str | None = None,
        *,
        base: str | None = None,
        output: str | None = None,
    ) -> "Study":
        """Read a YAML file.

        Args:
            file: which.
            quick: whether in its small size.
            data_set: which of its other data sets; None for its own.
            base: a config in the place of the study's own, such as one of another data set: without the
                paper's figures and claims, and tuned on its own, in `tuned.yaml` beside the runs.
            output: a folder in the place of the study's own.

        Raises:
            UserError: the file, a key or a value is wrong, or it names a method or a data set there isn't.
        """
        file = Path(file)
        content = read_yaml(file, "study", "title, base, rows and output")
        if "inputs" in content:
            raise UserError(f"{file} is a config, not a study: a study names one as its `base`.")
        own, known = content.get("published"), labels_of(content)
        if data_set is not None:
            content = of_set(content, data_set, file)
            if quick and not content["quick"]:
                raise UserError(f"{file} has no quick size on {data_set}: leave out --quick or --set.")
        if quick and not content.get("quick"):
            raise UserError(f"{file} has no quick size: leave out --quick.")
        if quick:
            content = merged(content, content["quick"])
        try:
            study = cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"In {file}: {explain(cls, error)}") from None
        for key in ("base", "output", "tuned"):
            if (path := getattr(study, key)) is not None:
                setattr(study, key, os.path.normpath(file.parent / path))
        study.base, study.output = base or study.base, output or study.output
        if base:
            study._leave_behind()
        study.claims = [
            claim for claim in study.claims if claim.sets is None or (data_set or own) in claim.sets
        ]
        for settings in (study.settings, study.tune.settings, *(row.settings for row in study.rows)):
            _relative_to(file.parent, settings)
        study._check(file, known)
        return study

    def _leave_behind(self) -> None:
        """Take over nothing of the paper's, and nothing that was tuned on the study's own data set."""
        self.published, self.claims = None, []
        for row in self.rows:
            row.paper = {}
        if self.tuned is not None:
            self.tuned = str(Path(self.output) / "tuned.yaml")

    def _check(self, file: Path, known: list[str]) -> None:
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
        # A small size or a data set may lack a row that a claim is about; the study's file may not.
        for label in (name for claim in self.claims for name in (claim.better, *claim.than)):
            if label not in (*labels, *known):
                raise UserError(f"In {file}: a claim names no row '{label}': {', '.join(labels)}.")


def _relative_to(folder: Path, settings: dict[str, Any]) -> None:
    """Make the paths among settings relative to the current folder, in place."""
    for key, value in settings.items():
        is_path = key.startswith(_PATHS) or key.endswith(".weights")
        if is_path and isinstance(value, str) and value.startswith("."):
            settings[key] = f"./{folder / value}"


class Cell:
    """One run of a study.

    Attributes:
        row: its row.
        size: number of training rows; None for all.
        seed: its seed.
        config: everything the run needs.
        fold: its fold; None where there are none.
        after: what is done with it once it is trained.
    """

    def __init__(
        self,
        row: RowConfig,
        size: int | None,
        seed: int,
        config: Config,
        fold: str | None = None,
        after: After | None = None,
    ):
        self.row, self.size, self.seed, self.config, self.fold = row, size, seed, config, fold
        self.after = after or After(test=True)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.output)

    @property
    def draw(self) -> int | str:
        """By what it is paired with the runs of other rows: its seed, of a fold both."""
        return self.seed if self.fold is None else f"{self.fold}, seed {self.seed}"

    @property
    def label(self) -> str:
        """What messages call it."""
        size = f", {self.size} training rows" if self.size else ""
        fold = f", {self.fold}" if self.fold else ""
        return f"{self.row.label}{size}{fold}, seed {self.seed}"


def method_of(row: RowConfig) -> Method | None:
    """A row's method; None for the base config's own."""
    return find_method(row.method) if row.method else None


def row_config(study: Study, row: RowConfig, tuned: Mapping[str, Any] | None = None) -> Config:
    """A row's config, of the first seed: the base, the study's settings, the method's, what was tuned, the
    row's own.

    Raises:
        UserError: a setting is wrong, or the method doesn't fit the base's inputs.
    """
    config = Config.load(study.base).with_settings(study.settings, "the study's settings")
    # What a method sets of the encoders depends on which input is main.
    main = {key: value for key, value in row.settings.items() if key == "fusion.main"}
    config = config.with_settings(main, f"the row {row.label}")
    if (method := method_of(row)) is not None:
        config = method.apply(config)
    config = config.with_settings((tuned or {}).get(row.label, {}), f"{study.tuned}, {row.label}")
    return config.with_settings(_of_seed(row.settings, study.seeds[0]), f"the row {row.label}")


def _of_seed(value: Any, seed: int) -> Any:
    """A setting, or several, with the seed where `{seed}` stands, as in `runs/a/seed{seed}`."""
    if isinstance(value, str):
        return value.replace(SEED, str(seed))
    if isinstance(value, Mapping):
        return {key: _of_seed(entry, seed) for key, entry in value.items()}
    return [_of_seed(entry, seed) for entry in value] if isinstance(value, list) else value


def cells(study: Study) -> list[Cell]:
    """Every run of a study, seeds outermost, so that a table is whole as early as can be.

    Raises:
        UserError: a setting is wrong, or there are no tables for folds or splits to be beside.
    """
    tuned = read_tuned(study)
    configs = [row_config(study, row, tuned) for row in study.rows]
    places = [(seed, fold) for seed in study.seeds for fold in study.folds or [None]]
    return [
        _cell(study, row, config, seed, fold, size)
        for seed, fold in places
        for row, config in zip(study.rows, configs, strict=True)
        for size in study.sizes or [None]
    ]


def _cell(
    study: Study, row: RowConfig, config: Config, seed: int, fold: str | None, size: int | None
) -> Cell:
    name = "-".join(
        [*([f"rows{size}"] if size else []), *([slug(fold)] if fold is not None else []), f"seed{seed}"]
    )
    settings = {
        **{key: _of_seed(value, seed) for key, value in row.settings.items() if SEED in str(value)},
        "training.seed": seed,
        "output": str(Path(study.output) / slug(row.label) / name),
    }
    if size is not None:
        settings["data.train_rows"] = size
    if fold is not None:
        settings |= _tables_of_fold(config, fold)
    config = config.with_settings(settings, row.label)
    after = After(study.evaluate is None, _splits_of(study, config), study.page)
    return Cell(row, size, seed, config, fold, after)


def _tables_of_fold(config: Config, fold: str) -> dict[str, str]:
    """The tables of the same names in a fold's folder, beside the folder of the config's."""
    tables = {split: getattr(config.data, split) for split in ("train", "validation", "test")}
    if tables["train"] is None:
        raise UserError("The study has folds: let its base name data.train, in the folder of one of them.")
    found = {}
    for split, file in tables.items():
        if file is not None:
            paths = posixpath if is_url(file) else os.path
            folder = paths.dirname(paths.dirname(file))
            found[f"data.{split}"] = paths.join(folder, fold, paths.basename(file))
    return found


def _splits_of(study: Study, config: Config) -> dict[str, str | None]:
    """Tables that a run is measured on, by split; None for the test rows of its config."""
    found: dict[str, str | None] = {}
    for split in study.evaluate or []:
        if split == TEST:
            found[split] = None
        elif split == "validation" and config.data.validation is not None:
            found[split] = config.data.validation
        elif config.data.test is not None:
            paths = posixpath if is_url(config.data.test) else os.path
            folder, name = paths.split(config.data.test)
            found[split] = paths.join(folder, split + paths.splitext(name)[1])
        else:
            raise UserError(f"'{split}' is a table beside the test table, and the base names no data.test.")
    return found


def columns_of(study: Study, metric: str) -> list[str]:
    """Columns of the table: metrics, of several splits each.

    Args:
        study: says which.
        metric: the task's deciding one, where it says none.
    """
    names = study.metrics or [metric]
    if study.evaluate is None:
        return names
    return [f"{split} {name}" for split in study.evaluate for name in names]


def value_of(metrics: Mapping[str, Any], column: str) -> float:
    """What a run's `metrics.json` says for a column.

    Raises:
        KeyError: the run wasn't measured so.
    """
    split, _, name = column.rpartition(" ")
    return metrics[SPLITS][split][name] if split else metrics[TEST][name]


def read_tuned(study: Study) -> dict[str, Any]:
    """Tuned settings by row; empty if the study has none yet."""
    if study.tuned is None or not Path(study.tuned).is_file():
        return {}
    content = yaml.safe_load(Path(study.tuned).read_text(encoding="utf-8"))
    return {row: entry["settings"] for row, entry in (content or {}).get("rows", {}).items()}


def slug(label: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-")
