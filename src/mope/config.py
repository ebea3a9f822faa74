"""A run's settings: one model per section, a doc line per field; YAML in, YAML out.

A path written in a YAML file is relative to that file; a path typed on the command line is relative to the
current folder.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict

from mope.errors import UserError
from mope.files import read_yaml

Probability = Annotated[float, Field(ge=0, lt=1)]
PATH: JsonDict = {"path": True}


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_assignment=True)


class EncoderConfig(Section):
    """A pre-trained encoder and how it is tuned."""

    weights: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """`package:NAME`, a folder (`./folder`) or a hub id; null for random ones."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    architecture: dict[str, Any] | None = None
    """A model's `model_type` and settings, to build it without weights; else what must agree."""
    pooling: Literal["cls", "mean", "pooler"] | None = None
    """Global feature: first token, mean, or the model's own pooler; null for what the weights come with."""
    tuning: Literal["frozen", "prompt", "full", "lora", "bitfit", "adaptformer"] = "frozen"
    """What is trained of it: nothing, vanilla deep prompts, everything, LoRA, biases, or adapters."""
    prompt_length: PositiveInt = 4
    """Length l' of its vanilla deep prompts."""
    projection: PositiveInt | None = None
    """Width of a trained linear projection of a black-box encoder's feature; null for none."""


class InputConfig(Section):
    """A named input: a column of the table, its kind and its encoder."""

    kind: Literal["image", "text", "audio", "video"]
    """What the column holds."""
    column: str
    """The column's name."""
    encoder: EncoderConfig
    """What encodes it."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Image, video: side in pixels given to the encoder, or [height, width]; null for its weights' own."""
    resize: PositiveInt | None = None
    """Image, video: side it is resized to before the centre is cropped to `size`; null for no crop."""
    cache: bool = False
    """Image: keep decoded and resized pictures on disk; not with augmentation."""
    denoise: bool = False
    """Audio: reduce the background, as MUStARD's authors do (librosa's vocal separation)."""
    augment: Literal["none", "randaugment"] = "none"
    """Image, video: augmentation while training; RandAugment as in appendix B (N=2, M=5)."""
    max_length: PositiveInt = 128
    """Text: number of tokens after which it is cut off."""
    missing: Literal["refuse", "drop", "learn"] = "refuse"
    """Empty cells: refuse them, drop their rows, or learn a stand-in for their feature."""
    drop: Probability = 0.0
    """Share of training rows from which this input is taken away, so that the stand-in is learned."""
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """Audio: length after which it is cut off."""


def _labels(value: Any) -> Any:
    """A YAML label such as 1 or true is the text of that label, as it would be in a CSV file."""
    return [_label(v) for v in value] if isinstance(value, list) else value


def _label(value: Any) -> Any:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


class DataConfig(Section):
    """Tables: CSV, JSONL, Parquet or a saved `datasets.Dataset`, with columns for inputs and label."""

    train: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of training rows."""
    validation: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of validation rows; without one, `validation_share` of the training rows is held out."""
    test: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of test rows, which training never reads."""
    split_column: str | None = None
    """Column of `train` that says train, validation or test, instead of a file per split."""
    validation_share: Probability = 0.1
    """Share of training rows held out where no validation rows are named."""
    label: str = "label"
    """The label's column."""
    labels: Annotated[list[str] | None, BeforeValidator(_labels)] = None
    """The labels in order; null for those of the training rows, sorted."""
    separator: str = "|"
    """Multi-label: what separates labels in a text cell."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each class in the loss: equal, inverse to its frequency, or by label."""
    train_rows: PositiveInt | None = None
    """Use only this many training rows, drawn by seed; null for all."""
    encoding: str | None = None
    """Of CSV and JSONL tables; null for UTF-8, or UTF-16 where a file is in it."""
    trusted: bool = True
    """Whether the tables' paths may leave the tables' folders."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What training does with rows it can't use."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that read and decode rows."""
    cache_features: bool = True
    """Whether training keeps the features of frozen, unprompted encoders on disk, to compute them once."""


class FusionConfig(Section):
    """How the encoders are fused."""

    method: str = "sequential"
    """`sequential` (MoPE, SeqFuse), `unimodal`, `concat`, `inputs` (PromptFuse, MMBT, Frozen), `pmf`, or a
    registered one."""
    main: str
    """The input that is encoded last, guided by the others."""
    prompts: list[Literal["static", "dynamic", "mapped"]] = ["static", "dynamic", "mapped"]
    """Which prompts the main encoder gets (Eq. 2); `inputs` knows `static` alone."""
    length: PositiveInt = 6
    """Prompt length l, of the static prompt and of each expert."""
    experts: Annotated[int, Field(ge=0)] = 4
    """Experts k per layer; 1 is one vanilla prompt, 0 none."""
    cross_dim: Annotated[int, Field(ge=0)] = 8
    """Width d_c of the cross-modal routing embedding."""
    intra_dim: Annotated[int, Field(ge=0)] = 2
    """Width d_i of the intra-modal routing embedding."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Routing temperature tau."""
    keys: Literal["learned", "normal", "xavier", "orthogonal"] = "orthogonal"
    """Routing embeddings: learned, or frozen from one of these starts."""
    top: PositiveInt | None = None
    """Hard routing: keep this many experts; null for soft routing."""
    dropout: Probability = 0.1
    """Dropout on all prompts."""
    importance_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the importance loss."""
    importance_threshold: Annotated[float, Field(ge=0)] = 0.1
    """Threshold gamma of the importance loss."""
    deep: bool = False
    """`inputs`: prompts in every layer, fresh, instead of at the input."""
    blind: bool = False
    """`inputs`: prompts and input tokens may not attend to the main input's own tokens."""
    input_from: Literal["feature", "tokens"] = "feature"
    """`inputs`: what the main encoder is given of the others, their global feature or all of their tokens."""
    input_tokens: PositiveInt = 1
    """`inputs`: number of tokens that a global feature is mapped to."""
    exchange_layers: PositiveInt = 2
    """`pmf`: number of last layers in which the streams exchange prompts."""
    options: dict[str, Any] = {}
    """What a registered method reads."""


class SegmentationConfig(Section):
    """The mask head and its loss; read by referring segmentation alone."""

    channels: PositiveInt = 512
    """Width inside UperNet."""
    loss: Literal["cross-entropy", "bce-dice"] = "cross-entropy"
    """Cross-entropy of each pixel, or with the Dice loss of each mask added."""


class TrainingConfig(Section):
    """The optimisation (section IV-B of the paper)."""

    epochs: Annotated[float, Field(gt=0)] = 10
    """At most this many passes over the training rows."""
    batch_size: PositiveInt = 16
    """Rows per step and device."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    """Of what belongs to the main input: prompts, experts, routers, mappers, head."""
    complementary_learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Of the other inputs' encoders."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW, on matrices; never on biases, norms and prompts."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """How the learning rates fall after the warm-up."""
    warmup: Probability = 0.1
    """Share of the steps in which the learning rates rise."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for any."""
    patience: PositiveInt = 3
    """Epochs without a better validation metric after which training stops."""
    metric: str | None = None
    """Validation metric that decides; null for the task's own."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic: bf16 autocast where the machine has it, or as said."""
    seed: int = 0
    """Of weights, order and dropout."""
    device: str | None = None
    """`cpu`, `cuda` or `mps`; null for the best there is."""


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
        if self.fusion.main not in self.inputs:
            raise ValueError(
                f"fusion.main names no input: it is '{self.fusion.main}', inputs are {', '.join(self.inputs)}"
            )
        if self.fusion.top is not None and self.fusion.top > self.fusion.experts:
            raise ValueError(
                f"fusion.top ({self.fusion.top}) is more than fusion.experts ({self.fusion.experts})"
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
            _set(settings, key, yaml.safe_load(value) if value else value)
        return cls.parse(settings, str(file))

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
        return self.with_settings(
            {key: yaml.safe_load(value) if value else value for key, value in overrides}, "the command line"
        )

    def dump(self) -> str:
        """The settings as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every setting: dotted key, doc line and default; `inputs.NAME` stands for an input."""
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        key = f"{prefix}{name}"
        if section is None:
            yield key, info.description or "", info.get_default(call_default_factory=True)
        else:
            yield from fields(section, f"{key}.NAME." if section is InputConfig else f"{key}.")


def _section(annotation: Any) -> type[Section] | None:
    """The section a field holds, directly or as the values of a mapping."""
    if annotation == dict[str, InputConfig]:
        return InputConfig
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _walk(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    """The section at a location in the settings."""
    for part in path:
        if model is InputConfig and part not in model.model_fields:
            continue  # an input's name
        info = model.model_fields.get(str(part))
        found = _section(info.annotation) if info else None
        if found is None:
            return None
        model = found
    return model


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence about the first thing that is wrong."""
    # A misspelt key is also a missing one: the spelling is the better news.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    count = error.error_count()
    # pydantic adds the branch of a union to the location: `literal[...]`, `dict[...]`.
    location = [part for part in first["loc"] if not re.search(r"[\[(-]", str(part))]
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        section = _walk(model, location[:-1])
        names = list(section.model_fields) if section else []
        near = difflib.get_close_matches(str(location[-1]), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it may be {', '.join(names)}."
        text = f"there is no setting '{key}'; {hint}"
    elif first["type"] == "missing":
        text = f"'{key}' is missing."
    elif first["type"] == "value_error":
        text = f"{first.get('ctx', {}).get('error')}."
    else:
        text = f"'{key}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
    return text if count == 1 else f"{text} ({count - 1} more like this.)"


def _resolve_paths(settings: Any, model: type[BaseModel], folder: Path) -> None:
    """Make the paths of a YAML file relative to the current folder, in place."""
    if not isinstance(settings, dict):
        return
    for name, value in settings.items():
        info = model.model_fields.get(name)
        section = _section(info.annotation) if info else None
        if section is InputConfig and isinstance(value, dict):
            for entry in value.values():
                _resolve_paths(entry, section, folder)
        elif section is not None:
            _resolve_paths(value, section, folder)
        elif info is not None and info.json_schema_extra == PATH and isinstance(value, str):
            # Weights are a path only where they look like one: a hub id has a slash too.
            is_path = name != "weights" or value.startswith((".", "~"))
            if is_path:
                path = _relative(folder / Path(value).expanduser())
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
