"""A request's rows: models made from a run's inputs, and how JSON and forms become rows."""

from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from mope.config import Config, FieldConfig, InputConfig
from mope.serve.limits import Refusal
from mope.serve.settings import ServeSettings

Row = dict[str, str | bytes | Mapping[str, Any] | None]
"""Cells by input name: a text; of media the bytes, or base64 of them; of a table values by column; None for a
missing one."""

_STRICT = ConfigDict(extra="forbid", populate_by_name=False)
_SHAPE = 'a body is {"row": {...}} or {"rows": [{...}, ...]}'


class Failure(BaseModel):
    """Why a request is refused."""

    error: str = Field(description="One sentence.")


class RowParser:
    """Makes rows from bodies, and knows the schema of both.

    Args:
        inputs: the run's, by name.
        settings: the limits.
    """

    def __init__(self, inputs: Mapping[str, InputConfig], settings: ServeSettings):
        self.inputs, self.settings = dict(inputs), settings
        # An input's name may be one that a model of pydantic's has itself, so that it is only an alias.
        self._places = {name: f"input_{place}" for place, name in enumerate(self.inputs)}
        self._most_parts = 1 + sum(len(entry.cells) for entry in self.inputs.values())
        columns: dict[str, Any] = {
            self._places[name]: self._field(entry, name) for name, entry in self.inputs.items()
        }
        self._row = create_model("Row", __config__=_STRICT, __doc__="Values by input.", **columns)
        some: Any = Annotated[
            list[self._row], Field(max_length=settings.rows, description=f"At most {settings.rows} rows.")
        ]
        many: Any = create_model("Rows", __config__=_STRICT, rows=(some, ...))
        one: Any = create_model("OneRow", __config__=_STRICT, row=(self._row, ...))
        either: Any = Annotated[
            Annotated[many, Tag("rows")] | Annotated[one, Tag("row")], Discriminator(_which_of_both)
        ]
        self._body: TypeAdapter[Any] = TypeAdapter(either)

    def _field(self, entry: InputConfig, name: str) -> tuple[Any, Any]:
        """Type and field of an input's values."""
        if entry.kind == "table":
            value: Any = self._columns(entry, name)
            text = "Values by column"
        elif entry.kind == "text":
            value = Annotated[str, Field(max_length=self.settings.characters)]
            text = "A text"
        else:
            value = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
            text = f"The content of {'a' if entry.kind == 'video' else 'an'} {entry.kind} file as base64"
        if entry.missing != "learn":
            return value, Field(alias=name, description=f"{text}.")
        return value | None, Field(None, alias=name, description=f"{text}; null or left out for none.")

    def _columns(self, entry: InputConfig, name: str) -> Any:
        """The model of a table input: each of its values may be left out."""
        text: Any = Annotated[str, Field(max_length=self.settings.characters)]
        types: dict[str | None, Any] = {"number": float | text, "category": text | bool | float, "date": text}
        fields: dict[str, Any] = {
            f"column_{place}": (types[field.kind] | None, Field(None, alias=column, description=_said(field)))
            for place, (column, field) in enumerate(entry.columns.items())
        }
        return create_model(
            f"Table_{self._places[name]}", __config__=_STRICT, __doc__="Values by column.", **fields
        )

    def parse(self, body: bytes) -> list[Row]:
        """The rows of a JSON body.

        Raises:
            Refusal: it isn't JSON, or of another shape.
        """
        try:
            content = from_json(body)
        except ValueError as error:
            raise Refusal(400, "json", f"The body isn't JSON: {error}.") from None
        self._check_keys(content)
        try:
            found = self._body.validate_python(content)
        except ValidationError as error:
            raise self._refused(error) from None
        rows = found.rows if hasattr(found, "rows") else [found.row]
        return [self._cells(row) for row in rows]

    def _check_keys(self, content: Any) -> None:
        """Refuse many rows and unknown keys before the model makes an error of each.

        Raises:
            Refusal: naming the first.
        """
        if not isinstance(content, Mapping) or len(content) != 1:
            return
        rows = content.get("rows", list(content.values()))
        if not isinstance(rows, list):
            return
        if len(rows) > self.settings.rows:
            raise Refusal(422, "shape", f"At most {self.settings.rows} rows are taken per request.")
        for number, row in enumerate(rows, 1):
            name = f"Row {number}" if "rows" in content else "The row"
            if not isinstance(row, Mapping):
                text = (
                    f"{name}: input should be an object."
                    if "rows" in content
                    else f"A wrong shape: {_SHAPE}."
                )
                raise Refusal(422, "shape", text)
            if strange := [key for key in row if key not in self.inputs]:
                known = ", ".join(self.inputs)
                text = f"{name} has '{_cut(strange[0])}', but the run's inputs are {known}."
                raise Refusal(422, "shape", text)

    def _cells(self, row: Any) -> Row:
        cells = {name: getattr(row, place) for name, place in self._places.items()}
        return {
            name: cell.model_dump(by_alias=True) if isinstance(cell, BaseModel) else cell
            for name, cell in cells.items()
        }

    async def parse_form(self, request: Request) -> Row:
        """The row of a form: a part per input, a file or a text.

        Raises:
            Refusal: it is broken, or of another shape.
        """
        try:
            form = await request.form(
                max_files=self._most_parts,
                max_fields=self._most_parts,
                max_part_size=self.settings.bytes,
            )
        except FormParserError as error:
            raise Refusal(400, "form", f"The form is broken: {error}.") from None
        try:
            parts: dict[str, str | bytes] = {}
            for name, part in form.multi_items():
                if name in parts:
                    raise Refusal(422, "shape", f"The form has several parts named '{name}'; one is taken.")
                parts[name] = await part.read() if isinstance(part, UploadFile) else part
        finally:
            await form.close()
        return self._form_row(parts)

    def _form_row(self, parts: Mapping[str, str | bytes]) -> Row:
        for name, part in parts.items():
            if isinstance(part, bytes) and self._is_text(name):
                try:
                    parts = {**parts, name: part.decode("utf-8")}
                except UnicodeDecodeError:
                    raise Refusal(422, "shape", f"The part '{name}' isn't text in UTF-8.") from None
        try:
            # The model looks at names and texts; content that came as a file is put back after it.
            plain = self._nested(
                {name: part if isinstance(part, str) else "" for name, part in parts.items()}
            )
            row = self._cells(self._row.model_validate(plain))
        except ValidationError as error:
            raise self._refused(error) from None
        return {**row, **{name: part for name, part in parts.items() if isinstance(part, bytes)}}

    def _is_text(self, name: str) -> bool:
        """Whether a form's part is a text: of a text input, or a table's column."""
        return (
            self.inputs[name].kind == "text" if name in self.inputs else name.partition(".")[0] in self.inputs
        )

    def _nested(self, parts: Mapping[str, str]) -> dict[str, Any]:
        """A form's parts as a row has them: `INPUT.COLUMN` is a table's value, an empty one is none."""
        tables = {name: entry for name, entry in self.inputs.items() if entry.kind == "table"}
        row: dict[str, Any] = {name: {} for name, entry in tables.items() if entry.missing != "learn"}
        for name, part in parts.items():
            table, dot, column = name.partition(".")
            if name in tables:
                known = ", ".join(f"{name}.{column}" for column in tables[name].columns)
                raise Refusal(422, "shape", f"The part '{name}' is a table: send parts named {known}.")
            if dot and table in tables:
                row.setdefault(table, {})[column] = part or None
            else:
                row[name] = part
        return row

    def _refused(self, error: ValidationError) -> Refusal:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        # The place of an error starts with which of the two shapes it was taken for.
        place = list(first["loc"])
        place = place[1:] if place[:1] in (["rows"], ["row"]) and len(place) > 1 else place
        row = f"Row {place[1] + 1}" if len(place) > 1 and isinstance(place[1], int) else "The row"
        name = _cut(str(place[-1])) if place else ""
        table = next((one for one in place if one in self.inputs and self.inputs[one].kind == "table"), None)
        if table is not None and place[-1] != table:
            return self._refused_column(row, table, str(place[place.index(table) + 1]), first)
        known = ", ".join(self.inputs)
        limit = self.settings
        if first["type"] == "union_tag_not_found" or (len(place) == 1 and name in ("row", "rows")):
            text = f"A wrong shape: {_SHAPE}."
        elif first["type"] == "extra_forbidden":
            text = f"{row} has '{name}', but the run's inputs are {known}."
        elif first["type"] == "missing":
            text = f"{row} has no '{name}': the run's inputs are {known}."
        elif first["type"] == "string_too_long":
            text = f"{row}: '{name}' is longer than {limit.characters:,} characters."
        elif first["type"] == "string_type":
            what = (
                "a text" if name in self.inputs and self.inputs[name].kind == "text" else "base64 in a text"
            )
            text = f"{row}: '{name}' must be {what}."
        else:
            text = f"{row}: {first['msg'][0].lower()}{first['msg'][1:]}."
        return Refusal(422, "shape", text)

    def _refused_column(self, row: str, table: str, column: str, error: Mapping[str, Any]) -> Refusal:
        if column not in self.inputs[table].columns:
            known = ", ".join(self.inputs[table].columns)
            return Refusal(422, "shape", f"{row}: '{table}' has no column '{_cut(column)}': it has {known}.")
        name = _cut(f"{table}.{column}")
        if error["type"] == "string_too_long":
            text = f"{row}: '{name}' is longer than {self.settings.characters:,} characters."
        else:
            text = f"{row}: '{name}' must be {_said(self.inputs[table].columns[column])}, or null."
        return Refusal(422, "shape", text)

    def body_schema(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The `content` of the request in OpenAPI, and the schemas it refers to."""
        template = "#/components/schemas/{model}"
        schema = self._body.json_schema(ref_template=template)
        text = {"type": "string", "maxLength": self.settings.characters}
        parts: dict[str, Any] = {}
        for name, entry in self.inputs.items():
            if entry.kind == "table":
                parts |= {
                    f"{name}.{column}": {**text, "description": _said(field)}
                    for column, field in entry.columns.items()
                }
            elif entry.kind == "text":
                parts[name] = text
            else:
                parts[name] = {
                    "type": "string",
                    "format": "binary",
                    "description": f"A file with the {entry.kind}.",
                }
        form: dict[str, Any] = {"type": "object", "properties": parts, "additionalProperties": False}
        required = [name for name, entry in self.inputs.items() if entry.missing != "learn" and name in parts]
        if required:
            form["required"] = required
        definitions = schema.pop("$defs", {})
        return {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}, definitions


def _said(field: FieldConfig) -> str:
    """What a column of a table takes."""
    words = {"number": "a number", "category": "a text", "date": "a date such as 2026-11-26"}
    return words[field.kind or "category"]


def _cut(name: str) -> str:
    """A name as messages say it, however long it is."""
    return name if len(name) <= 50 else f"{name[:50]}..."


def charset_of(header: str) -> str:
    """The charset that a Content-Type header names, in lower case; empty without one."""
    found = Message()
    found["content-type"] = header
    return str(found.get_param("charset", "")).lower()


def _which_of_both(body: Any) -> str | None:
    """Which shape a body has, by its key; None if it has others, too."""
    if not isinstance(body, Mapping) or len(body) != 1:
        return None
    return next((name for name in ("rows", "row") if name in body), None)


_LABELS: dict[str, tuple[Any, str]] = {
    "classification": (str, "The label."),
    "multilabel": (list[str], "The labels."),
    "regression": (float, "The number."),
}


class Mask(BaseModel):
    """COCO's run lengths."""

    size: list[int] = Field(min_length=2, max_length=2, description="[height, width] of the picture.")
    counts: str


def answer_model(config: Config) -> type[BaseModel]:
    """The model of an answer, by the run's task."""
    kind, text = _LABELS.get(config.task, (Mask, "The mask."))
    label: Any = kind | None
    routing = Field(
        default=None, description="Scores of each layer's experts, with ?routing=true; else it isn't there."
    )
    by_label = Field(description="By label; empty for a task without labels by name; null with an error.")
    answer: Any = create_model(
        "Prediction",
        __doc__="What the run says of a row.",
        label=(label, Field(description=f"{text} Null with an error.")),
        probabilities=(dict[str, float] | None, by_label),
        routing=(list[list[float]] | None, routing),
        error=(str | None, Field(description="Why the row can't be used.")),
    )
    many: Any = list[answer]
    return create_model(
        "Answer",
        __doc__="Predictions in the order of the rows.",
        predictions=(many, Field(description="One for each row.")),
    )


def answer_of(predictions: Sequence[Any], routing: bool) -> dict[str, Any]:
    """An answer as JSON has it."""
    rows = []
    for found in predictions:
        failed = found.error is not None
        row = {"label": found.label, "probabilities": None if failed else found.probabilities}
        if routing:
            row["routing"] = None if failed else found.routing
        rows.append({**row, "error": found.error})
    return {"predictions": rows}
