"""The sections of a run's settings: a doc line per field."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

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
from pydantic_core import PydanticCustomError

from mope.errors import UserError

Probability = Annotated[float, Field(ge=0, lt=1)]
PATH: JsonDict = {"path": True}
MAX_PIXELS = 64_000_000
"""Largest image that is decoded; above it a small file can take gigabytes of memory."""


def _labels(value: Any) -> Any:
    """A YAML label such as 1 or true is the text of that label, as it would be in a CSV file."""
    return [_label(v) for v in value] if isinstance(value, list) else value


def _by_label(value: Any) -> Any:
    """The same of what is given by label."""
    return {_label(key): of_it for key, of_it in value.items()} if isinstance(value, dict) else value


def _label(value: Any) -> Any:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


class _Told(type(BaseModel)):
    """Of a section that is made in Python, a mistake is told in a sentence, as it is of one in a file.

    Attributes:
        explain: makes the sentence; it knows all sections, so that it is set where they are known.
    """

    explain: ClassVar[Callable[[Any, ValidationError], str]]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise _told(cls, error) from None


def _told(section: Any, error: ValidationError) -> UserError:
    return UserError(f"In {section.__name__}: {_Told.explain(section, error)}")


class Section(BaseModel, metaclass=_Told):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_assignment=True)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise _told(type(self), error) from None


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


class FieldConfig(Section):
    """A column of a table input; what isn't said of it is found in the training rows."""

    kind: Literal["number", "category", "date"] | None = None
    """What the column holds; null for what its cells look like."""
    centre: float | None = None
    """Number, date: what is taken off it; of a date in days since 1970."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Number, date: what it is divided by then."""
    edges: list[float] = []
    """Number: edges of the bins of its piecewise-linear embedding, in these units."""
    values: Annotated[list[str], BeforeValidator(_labels)] | None = None
    """Category: the values that are known; all others are one."""


def _fields(value: Any) -> Any:
    """Columns by name, also from a list of names, or from names and kinds."""
    if isinstance(value, list):
        return {str(name): {} for name in value}
    if isinstance(value, dict):
        return {
            str(name): {"kind": one} if isinstance(one, str) else one or {} for name, one in value.items()
        }
    return value


class InputConfig(Section):
    """A named input: a column of the table, its kind and its encoder; or several columns as one input."""

    kind: Literal["image", "text", "audio", "video", "table"]
    """What the column holds; `table` for numbers, categories and dates in `columns`."""
    column: str = ""
    """The column's name."""
    columns: Annotated[dict[str, FieldConfig], BeforeValidator(_fields)] = {}
    """Table: its columns, as a list of names or with what they hold."""
    encoder: EncoderConfig = EncoderConfig()
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

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, settings: Any) -> Any:
        """A table's encoder is trained from the start; any other input has a column and an encoder."""
        if not isinstance(settings, dict) or not settings.keys() <= cls.model_fields.keys():
            return settings
        if settings.get("kind") == "table":
            if not settings.get("columns"):
                raise ValueError("a table input has `columns`, a list of names")
            if settings.get("column"):
                raise ValueError("a table input has `columns`, a list of names, and no `column`")
            return {"encoder": {"tuning": "full"}, **settings}
        if settings.get("columns"):
            raise ValueError(f"`columns` are for kind: table; a {settings.get('kind')} has one `column`")
        if missing := [key for key in ("column", "encoder") if key not in settings]:
            raise PydanticCustomError("missing", "field required", {"key": missing[0]})
        return settings

    @model_validator(mode="after")
    def _trained(self) -> "InputConfig":
        if self.kind == "table" and (self.encoder.tuning != "full" or self.encoder.weights is not None):
            raise ValueError("a table's encoder has no weights to begin with: its tuning is full")
        return self

    @property
    def cells(self) -> dict[str, str]:
        """What each of its columns holds, by name; `value` where that is still to be found."""
        if self.kind != "table":
            return {self.column: self.kind}
        return {name: field.kind or "value" for name, field in self.columns.items()}


class MediaLimits(Section):
    """How large a stranger's pictures, sounds and videos may be; read where rows aren't trusted."""

    megabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32
    """Largest file, in 2**20 bytes."""
    pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)] = MAX_PIXELS
    """Of a picture, or of a video's frame."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120
    """Of a sound or a video."""

    @property
    def bytes(self) -> int:
        """Largest file."""
        return int(self.megabytes * 2**20)


class DataConfig(Section):
    """Tables: CSV, JSONL, Parquet, .tar shards or a saved `datasets.Dataset`; columns for inputs, label."""

    train: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of training rows."""
    validation: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of validation rows; without one, `validation_share` of the training rows is held out."""
    test: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """Table of test rows, which training never reads."""
    folder: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """What paths in the tables are relative to; null for each table's own folder."""
    split_column: str | None = None
    """Column of `train` that says train, validation or test, instead of a file per split."""
    validation_share: Probability = 0.1
    """Share of training rows held out where no validation rows are named."""
    group: str | None = None
    """Column by which rows are held out together, besides by what picture, sound or video they show."""
    label: str = "label"
    """The label's column."""
    labels: Annotated[list[str] | None, BeforeValidator(_labels)] = None
    """The labels in order; null for those of the training rows, sorted."""
    separator: str = "|"
    """Multi-label: what separates labels in a text cell."""
    class_weights: Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_by_label)] = (
        "none"
    )
    """Weight of each class in the loss: equal, inverse to its frequency, or by label."""
    train_rows: PositiveInt | None = None
    """Use only this many training rows, drawn by seed; null for all. Of a stream: rows per epoch."""
    streaming: bool = False
    """Whether training reads its rows one after another, without holding or checking them all beforehand."""
    shuffle_buffer: PositiveInt = 1000
    """Of a stream: rows that are held, to draw the next one from by seed; 1 for the files' own order."""
    encoding: str | None = None
    """Of CSV and JSONL tables; null for UTF-8, or UTF-16 where a file is in it."""
    trusted: bool = True
    """Whether the tables' paths may leave the tables' folders, and media be what a server would refuse."""
    limits: MediaLimits = Field(default_factory=MediaLimits)
    """Of the media of tables that aren't trusted."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What training does with rows it can't use."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that read and decode rows."""
    cache_features: bool = True
    """Whether training and evaluation keep features of frozen, unprompted encoders on disk."""


class SegmentationConfig(Section):
    """The mask head and its loss; read by referring segmentation alone."""

    channels: PositiveInt = 512
    """Width inside UperNet."""
    loss: Literal["cross-entropy", "bce-dice"] = "cross-entropy"
    """Cross-entropy of each pixel, or with the Dice loss of each mask added."""


class TrainingConfig(Section):
    """The optimisation (section IV-B of the paper)."""

    begin_from: Annotated[str | None, Field(json_schema_extra=PATH)] = None
    """A run to go on from, whose experts may be fewer (a divisor of `fusion.experts`); null to begin anew."""
    solver: Literal["adamw", "lbfgs"] = "adamw"
    """Steps over batches by AdamW, or L-BFGS over all rows at once, for a linear head on frozen features."""
    epochs: Annotated[float, Field(gt=0)] = 10
    """At most this many passes over the training rows."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Time for everything, in which the schedule runs through, unless `epochs` end sooner; null for any."""
    batch_size: PositiveInt = 16
    """Rows per step, of all processes together."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one step."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    """Of what belongs to the main input: prompts, experts, routers, mappers, head."""
    complementary_learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Of the other inputs' encoders: prompts, and what else is added to them."""
    encoder_learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Of encoders' own weights, where an encoder is tuned in full."""
    head_start: Literal["random", "probe"] = "probe"
    """Where a linear head begins: at random, as published, or fitted to what the model makes of some training
    rows at first; at random too where rows are a stream."""
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    """The linear head's learning rate, as a multiple of `learning_rate`."""
    router_factor: Annotated[float, Field(gt=0)] = 0.1
    """The routers' learning rate, likewise; 1 as published."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW, on matrices; never on biases, norms and prompts."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """How the learning rates fall after the warm-up."""
    warmup: Probability = 0.1
    """Share of the steps in which the learning rates rise."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for any."""
    save_minutes: Annotated[float, Field(gt=0)] | None = 5
    """Minutes between checkpoints, beside the one at the end of each epoch; null for these alone."""
    patience: PositiveInt = 3
    """Epochs without a better validation metric after which training stops."""
    metric: str | None = None
    """Validation metric that decides; null for the task's own."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic: bf16 autocast where the machine is faster in it, or as said; fp16 takes a GPU."""
    gradient_checkpointing: bool = False
    """Whether layers' activations are computed again in the backward pass: less memory, more time."""
    compile: bool = False
    """Whether the model is compiled by torch.compile: minutes at first, then faster steps on most GPUs."""
    fsdp: bool = False
    """Whether several processes share out the weights of encoders tuned in full (FSDP): less memory each."""
    report_to: list[str] = ["tensorboard"]
    """Where losses and rates go: tensorboard, in the run's folder; wandb, mlflow or another that transformers
    knows and that is installed."""
    seed: int = 0
    """Of weights, order and dropout."""
    device: str | None = None
    """`cpu`, `cuda` or `mps`; null for the best there is."""
