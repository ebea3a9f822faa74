"""A run's settings: one model per section, a doc line per field; YAML in, YAML out.

A path written in a YAML file is relative to that file; a path typed on the command line is relative to the
current folder.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from mope.config.fusion import METHODS, REGISTERED, FusionConfig, SequentialConfig, fusion_section
from mope.config.sections import (
    PATH,
    DataConfig,
    FieldConfig,
    InputConfig,
    Section,
    SegmentationConfig,
    TrainingConfig,
)
from mope.errors import UserError
from mope.files import read_yaml
from mope.remote import is_url, rebased


class Config(Section):
    """Everything a run needs."""

    task: Literal["classification", "multilabel", "regression", "referring-segmentation"] = "classification"
    """One label per row, any number of labels per row, a number, or a mask of the main input's picture."""
    inputs: Annotated[dict[str, InputConfig], Field(min_length=1)]
    """Inputs by name."""
    fusion: FusionConfig
    """How they are fused."""
    data: DataConfig = DataConfig()
    """Where the rows are."""
    segmentation: SegmentationConfig = SegmentationConfig()
    """How masks are made."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""
    output: Annotated[str, Field(json_schema_extra=PATH)] = "runs/run"
    """The run's folder."""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if is_url(self.output):
            raise ValueError(f"output is a folder on this machine, not {self.output}")
        if self.fusion.main not in self.inputs:
            raise ValueError(
                f"fusion.main names no input: it is '{self.fusion.main}', inputs are {', '.join(self.inputs)}"
            )
        if self.task == "referring-segmentation":
            self._check_picture()
        for name, entry in self.inputs.items():
            if entry.resize and isinstance(entry.size, tuple):
                raise ValueError(f"inputs.{name}.resize takes a square size, not [height, width]")
            if entry.cache and (entry.kind != "image" or entry.augment != "none"):
                raise ValueError(f"inputs.{name}.cache is for images without augmentation")
            if entry.drop and entry.missing != "learn":
                raise ValueError(f"inputs.{name}.drop takes inputs.{name}.missing: learn")
            if not name.isidentifier() or name == "labels":
                raise ValueError(
                    f"inputs.{name}: an input's name is letters, digits and underscores, not 'labels'"
                )
        return self

    def _check_picture(self) -> None:
        main = self.inputs[self.fusion.main]
        if main.kind != "image":
            raise ValueError(
                f"a mask is of a picture, but fusion.main '{self.fusion.main}' is of kind {main.kind}"
            )
        if main.resize:
            raise ValueError(
                f"inputs.{self.fusion.main}.resize crops the picture, but its mask is wanted whole: drop it"
            )
        if main.missing == "learn":
            raise ValueError(
                f"inputs.{self.fusion.main}.missing can't be learn: without a picture there's no mask"
            )

    @property
    def picture(self) -> str | None:
        """Name of the input whose picture the label is a mask of; None for a task without masks."""
        return self.fusion.main if self.task == "referring-segmentation" else None

    @property
    def has_classes(self) -> bool:
        """Whether labels are names, rather than numbers or masks."""
        return self.task in ("classification", "multilabel")

    @property
    def complementary(self) -> list[str]:
        """Names of the inputs that guide the main one, in the order of the config."""
        return [name for name in self.inputs if name != self.fusion.main]

    @classmethod
    def load(cls, file: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> "Config":
        """Read a YAML file, then apply typed `(dotted key, value)` pairs.

        Raises:
            UserError: the file, a key or a value is wrong.
        """
        file = Path(file)
        settings = read_yaml(file, "config", "at least `inputs` and `fusion`")
        _resolve_paths(settings, cls, file.parent)
        for key, value in overrides:
            _set(settings, key, typed(key, value))
        return cls.parse(settings, f"{file} and the command line" if overrides else str(file))

    @classmethod
    def parse(cls, settings: Mapping[str, Any], where: str = "the config") -> "Config":
        """Check a mapping of settings.

        Raises:
            UserError: naming the key, what is wrong with it and, for an unknown one, the key that was meant.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise UserError(f"In {where}: {explain(cls, error)}") from None

    def with_settings(self, settings: Mapping[str, Any], where: str = "the settings") -> "Config":
        """A copy with other values, by dotted key.

        Raises:
            UserError: see `parse`.
        """
        if not settings:
            return self.model_copy(deep=True)
        content = self.model_dump()
        for key, value in settings.items():
            _set(content, key, value)
        return self.parse(content, where)

    def with_typed(self, overrides: Sequence[tuple[str, str]]) -> "Config":
        """A copy with typed `(dotted key, value)` pairs."""
        return self.with_settings({key: typed(key, value) for key, value in overrides}, "the command line")

    def dump(self) -> str:
        """The settings as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def typed(key: str, text: str) -> Any:
    """What is typed for a setting: of a setting that is text the very text, else its value as YAML.

    Raises:
        UserError: it isn't YAML.
    """
    *path, name = key.split(".")
    infos = [section.model_fields[name] for section in _walk(Config, path) if name in section.model_fields]
    info = infos[0] if infos else None
    kinds = set(get_args(info.annotation) or [info.annotation]) if info else set()
    if str in kinds and kinds <= {str, type(None)}:
        return None if text == "null" and type(None) in kinds else text
    try:
        return yaml.safe_load(text) if text else text
    except yaml.YAMLError:
        raise UserError(f"--{key} can't be '{text}': a list is [a, b], a mapping {{a: b}}.") from None


_NAMED: tuple[type[Section], ...] = (InputConfig, FieldConfig)
"""Sections of which there are any number, by a user's names."""


@dataclass(frozen=True)
class Setting:
    """A setting, as it is listed.

    Attributes:
        key: dotted; `inputs.NAME` stands for an input.
        text: its doc line.
        default: `PydanticUndefined` where it is required.
        method: the fusion method that alone has it; None for one that doesn't depend on the method.
    """

    key: str
    text: str
    default: Any
    method: str | None = None


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting; those of fusion methods by method."""
    for name, info in model.model_fields.items():
        sections, key = _sections(info), f"{prefix}{name}"
        if len(sections) > 1:
            yield from _fusion_fields(f"{key}.")
        elif sections:
            yield from fields(sections[0], f"{key}.NAME." if sections[0] in _NAMED else f"{key}.")
        else:
            yield Setting(key, _text(info), info.get_default(call_default_factory=True))


def _fusion_fields(prefix: str) -> Iterator[Setting]:
    methods = {**METHODS, "NAME": fusion_section(REGISTERED)}
    common = set.intersection(*(set(section.model_fields) for section in methods.values())) - {"method"}
    shared = SequentialConfig.model_fields
    names = f"One of {', '.join(METHODS)}, or a registered one's name."
    yield Setting(f"{prefix}method", f"How the inputs are fused. {names}", "sequential")
    for name in sorted(common, key=list(shared).index):
        info = shared[name]
        yield Setting(f"{prefix}{name}", _text(info), info.get_default(call_default_factory=True))
    for method, section in methods.items():
        for name, info in section.model_fields.items():
            if name not in common and name != "method":
                default = info.get_default(call_default_factory=True)
                yield Setting(f"{prefix}{name}", _text(info), default, method)


def _text(info: FieldInfo) -> str:
    words = ", ".join(map(str, _words(info.annotation)))
    return f"{info.description or ''}{f' One of {words}.' if words else ''}"


def _words(annotation: Any) -> list[Any]:
    """The words that a field takes, where it takes only some."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for inner in get_args(annotation) for word in _words(inner)]


def _sections(info: FieldInfo | None) -> list[type[Section]]:
    """The sections a field may hold, directly or as the values of a mapping; none for a value."""
    if info is None:
        return []
    for section in _NAMED:
        if info.annotation == dict[str, section]:
            return [section]
    kinds = get_args(info.annotation) or (info.annotation,)
    bare = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    return [kind for kind in bare if isinstance(kind, type) and issubclass(kind, Section)]


def _walk(model: type[BaseModel], path: Sequence[Any]) -> list[type[BaseModel]]:
    """The sections that may be at a location in the settings; those of fusion methods by method."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue  # a place in a list
        if len(models) == 1 and models[0] in _NAMED and part not in models[0].model_fields:
            continue  # an input's or a column's name
        models = [found for model in models for found in _sections(model.model_fields.get(str(part)))]
    return models


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence about the first thing that is wrong."""
    # A misspelt key is also a missing one: the spelling is the better news.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    count = error.error_count()
    # pydantic adds the branch of a union to the location: `literal[...]`, `dict[...]`.
    location = [part for part in first["loc"] if not re.search(r"[\[(-]", str(part))]
    method = str(location.pop(1)) if location[:1] == ["fusion"] and len(location) > 1 else None
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        sections = [fusion_section(method)] if method else _walk(model, location[:-1])
        names = [name for section in sections for name in section.model_fields]
        near = difflib.get_close_matches(str(location[-1]), names, n=1)
        if len(location) == 1:
            near = _elsewhere(str(location[0])) or near
        hint = f"did you mean '{near[0]}'?" if near else f"it may be {', '.join(names)}."
        having = [name for name, section in METHODS.items() if location[-1] in section.model_fields]
        if method and having:
            text = (
                f"fusion.method {method} has no setting '{location[-1]}' (it is for {', '.join(having)}): "
                "leave it out."
            )
        else:
            text = f"there is no setting '{key}'; {hint}"
    elif first["type"] == "missing":
        inner = first.get("ctx", {}).get("key")
        text = f"'{'.'.join(filter(None, (key, inner)))}' is missing."
    elif first["type"] == "value_error":
        text = f"{first.get('ctx', {}).get('error')}."
    else:
        text = f"'{key}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
    return text if count == 1 else f"{text} ({count - 1} more like this.)"


type(Section).explain = staticmethod(explain)


def _elsewhere(name: str) -> list[str]:
    """The setting of this name in a section, for one that is named without: `epochs` is `training.epochs`."""
    keys = [setting.key for setting in fields() if setting.key.rpartition(".")[2] == name]
    return sorted(keys, key=lambda key: key.startswith("inputs."))[:1]


def _resolve_paths(settings: Any, model: type[BaseModel], folder: Path) -> None:
    """Make the paths of a YAML file relative to the current folder, in place."""
    if not isinstance(settings, dict):
        return
    for name, value in settings.items():
        info = model.model_fields.get(name)
        section = next(iter(_sections(info)), None)
        if section is not None and section in _NAMED and isinstance(value, dict):
            for entry in value.values():
                _resolve_paths(entry, section, folder)
        elif section is not None:
            _resolve_paths(value, section, folder)
        elif info is not None and info.json_schema_extra == PATH and isinstance(value, str):
            # Weights are a path only where they look like one: a hub id has a slash too.
            is_path = name != "weights" or value.startswith((".", "~"))
            if is_path:
                path = rebased(value, lambda path: _relative(folder / Path(path).expanduser()))
                settings[name] = f"./{path}" if name == "weights" and not path.startswith("/") else path


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings."""
    *path, last = key.split(".")
    for part in path:
        inner = settings.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"--{key}: '{part}' is no section of the config.")
        settings = inner
    settings[last] = value
