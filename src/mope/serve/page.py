"""The page: a widget per input, the answer, the routing and where the model looked, on Gradio."""

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from mope.config import Config, GuidedConfig
from mope.errors import UserError
from mope.media.cells import BadCell, is_missing, source_of
from mope.media.values import VALUES
from mope.predictions import Prediction
from mope.serve import views
from mope.serve.engine import Engine
from mope.serve.limits import CALLER, Refusal
from mope.serve.rows import Row
from mope.serve.security import is_inside
from mope.serve.served import Served

_EXAMPLES = 4
_TOP = 5
_HOURS = 3600

# Gradio asks for these when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


@cache
def _folder() -> Path:
    """Where Gradio keeps files: a folder of this process, which goes with it.

    Its usual folder is one for all Gradio apps of a machine, each of which would hand out the others' files.
    """
    folder = tempfile.mkdtemp(prefix="mope-serve-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    return Path(folder)


def mount_page(app: FastAPI, engine: Engine, served: Served) -> tuple[FastAPI, Path]:
    """Put the page at `/` of an app, behind the routes it has.

    Gradio serves the files of its own folder alone, which is this server's and goes with it; its API, its
    documentation of it, its records and its messages home are off.

    Returns:
        The app, and Gradio's folder.
    """
    import gradio
    from gradio.themes import Default

    folder = _folder()
    blocks = _Page(engine, served, folder).build()
    plain = ["system-ui", "sans-serif"]  # Gradio's own fonts come from the web
    mounted = gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=engine.settings.bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        theme=Default(font=plain, font_mono=["monospace"]),
        css=views.page_style(),
    )
    return mounted, folder


class _Page:
    """Makes the widgets and answers them.

    Args:
        engine: predicts.
        served: the run.
        folder: for the files of examples.
    """

    def __init__(self, engine: Engine, served: Served, folder: Path):
        self.engine, self.served, self.folder = engine, served, folder
        self.settings: Config = served.predictor.settings
        self.names = [name for name in self.settings.inputs if name in served.kinds]
        self.slots: list[tuple[str, str | None]] = []
        for name in self.names:
            columns = self.settings.inputs[name].columns
            self.slots += [(name, column) for column in columns] or [(name, None)]
        main = self.settings.fusion.main
        self.has_routing = self._has_routing()
        self.looks = served.kinds.get(main) == "image" and self.settings.picture is None

    def _has_routing(self) -> bool:
        fusion = self.settings.fusion
        return isinstance(fusion, GuidedConfig) and fusion.experts > 1 and "dynamic" in fusion.prompts

    def build(self) -> Any:
        """The page as Gradio's Blocks."""
        import gradio

        name = self.served.predictor.run.name
        with gradio.Blocks(
            analytics_enabled=False, title=f"mope: {name}", delete_cache=(_HOURS, _HOURS)
        ) as page:
            gradio.Markdown(f"# {name}\n{self._about()}")
            with gradio.Row():
                with gradio.Column():
                    widgets = [self._widget(*slot) for slot in self.slots]
                    button = gradio.Button("Predict", variant="primary", elem_id="predict")
                    self._add_examples(widgets)
                with gradio.Column():
                    outputs = [self._answer_widget()]
                    if self.looks:
                        outputs.append(
                            gradio.Image(
                                label="Where it looks: bright is where the last layer attends to",
                                interactive=False,
                                format="jpeg",
                                buttons=[],
                                elem_id="attention",
                            )
                        )
                    outputs.append(gradio.HTML(elem_id="routing", visible=self.has_routing))

            def answer(request: gradio.Request, *values: Any) -> list[Any]:
                return self.answer(*values, caller=getattr(request.state, CALLER, None))

            events = [button.click, *(w.submit for w in widgets if isinstance(w, gradio.Textbox))]
            gradio.on(
                events,
                answer,
                widgets,
                outputs,
                api_visibility="private",
                concurrency_limit=8,
                show_progress="minimal",
            )
        return page.queue(max_size=64, api_open=False)

    def _about(self) -> str:
        task = self.settings.task.replace("-", " ")
        kinds = ", ".join(
            key if key == self.served.kinds[key] else f"{key} ({self.served.kinds[key]})"
            for key in self.names
        )
        return f"{task[0].upper()}{task[1:]} from {kinds}. The same as JSON: [/docs](/docs)."

    def _widget(self, name: str, column: str | None) -> Any:
        import gradio

        kind = self.served.kinds[name]
        if column is not None:
            return self._field(name, column)
        label = f"{name} (may be left out)" if self.settings.inputs[name].missing == "learn" else name
        if kind == "text":
            limit = self.engine.settings.characters
            return gradio.Textbox(label=label, lines=2, max_length=limit, elem_id=f"input-{name}")
        options: dict[str, Any] = {"label": label, "elem_id": f"input-{name}"}
        if kind == "image":
            # A path, so that the file stays as it is: turned, cut or packed anew it would be another row.
            image = gradio.Image(
                **options, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320
            )
            # Gradio would open it first, and say of a broken one that there was an error.
            image.preprocess = lambda payload: None if payload is None else payload.path
            return image
        if kind == "audio":
            return gradio.Audio(**options, type="filepath", sources=["upload"], editable=False)
        return gradio.Video(**options, sources=["upload"], height=320)

    def _field(self, name: str, column: str) -> Any:
        """The widget of a table's column; it may be left empty."""
        import gradio

        field = self.settings.inputs[name].columns[column]
        options: dict[str, Any] = {
            "label": f"{column} (may be left out)",
            "elem_id": f"input-{name}-{column}",
        }
        if field.kind == "number":
            return gradio.Number(**options)
        if field.kind == "category":
            return gradio.Dropdown(field.values or [], value=None, allow_custom_value=True, **options)
        return gradio.Textbox(placeholder="2026-11-26", max_length=40, **options)

    def _answer_widget(self) -> Any:
        import gradio

        task = self.settings.task
        if task == "referring-segmentation":
            return gradio.Image(
                label="The mask", interactive=False, format="jpeg", buttons=[], elem_id="answer"
            )
        if task == "regression":
            return gradio.Number(label=self.settings.data.label, interactive=False, elem_id="answer")
        count = len(self.served.predictor.model.task.classes)
        return gradio.Label(
            label=self.settings.data.label, num_top_classes=min(_TOP, count), elem_id="answer", buttons=[]
        )

    def answer(self, *values: Any, caller: str | None = None) -> list[Any]:
        """What the page shows for what its widgets hold.

        Args:
            values: of the widgets.
            caller: whose page it is, where callers have tokens of their own.

        Raises:
            gradio.Error: the row can't be used, or the server is full.
        """
        import gradio

        row: Row = {}
        tables: dict[str, dict[str, Any]] = {}
        for (name, column), value in zip(self.slots, values, strict=True):
            if column is not None:
                row[name] = tables.setdefault(name, {})
                tables[name][column] = value
            elif self.served.kinds[name] == "text" or not value:
                row[name] = value or None
            elif is_inside(value, self.folder):
                row[name] = Path(value).read_bytes()
            else:
                raise gradio.Error(f"{name}: not a file that was uploaded here", print_exception=False)
        try:
            # In a thread of the engine's: see there what others would cost.
            (future,) = self.engine.ask(self.served, lambda: [row], caller).result()
            prediction = future.result()
            shown = [] if prediction.error else self._shown(row, prediction)
        except Refusal as refusal:
            raise gradio.Error(refusal.detail, title="Not now", print_exception=False) from None
        if prediction.error:
            raise gradio.Error(prediction.error, title="This row can't be used", print_exception=False)
        return shown

    def _shown(self, row: Row, prediction: Prediction) -> list[Any]:
        main = self.settings.fusion.main
        content = row.get(main)
        label: Any = prediction.label
        if isinstance(label, dict) and isinstance(content, bytes):
            label = views.masked_picture(content, label)
        elif prediction.probabilities:
            label = prediction.probabilities
        shown = [label]
        if self.looks:
            attention = self.engine.attention(self.served, row) if isinstance(content, bytes) else None
            shown.append(
                views.attention_picture(content, attention, self.settings.inputs[main])
                if attention is not None and isinstance(content, bytes)
                else None
            )
        layers = self.served.predictor.model.fusion.routed_layers(len(prediction.routing))
        return [*shown, views.routing_html(prediction.routing, layers, main)]

    def _add_examples(self, widgets: list[Any]) -> None:
        """The first rows of the run's test table, where its files are still there."""
        import gradio

        if rows := self._examples():
            gradio.Examples(
                rows,
                widgets,
                label="Rows of the test table",
                examples_per_page=_EXAMPLES,
                cache_examples=False,
                api_visibility="private",
            )

    def _examples(self) -> list[list[Any]]:
        rows = []
        try:
            table = self.served.predictor.table()
            for place in range(min(_EXAMPLES, len(table))):
                row = table[place]
                rows.append(
                    [self._example(place, name, column, row, table.folder) for name, column in self.slots]
                )
        except (UserError, BadCell, OSError):
            return rows
        return rows

    def _example(
        self, place: int, name: str, column: str | None, row: Mapping[str, Any], folder: Path
    ) -> Any:
        """A cell as a widget takes it: of media a copy, in the folder that Gradio may serve."""
        kind = self.served.kinds[name]
        if column is not None:
            held = self.settings.inputs[name].columns[column].kind or "category"
            value = VALUES[held](row.get(column), folder)
            return str(row[column]) if held == "date" and value is not None else value
        cell = self.served.predictor.readers[name].cell(row)
        if kind == "text" or is_missing(cell):
            return cell if isinstance(cell, str) else None
        source = source_of(cell, folder, kind)
        if isinstance(source, io.BytesIO):
            content, suffix = source.getvalue(), views.suffix_of(source.getvalue(), kind)
        else:
            content, suffix = source.read_bytes(), source.suffix
        # Pages of one process have one folder: a run's examples are kept apart by its id.
        copy = self.folder / f"example-{id(self)}-{place}-{name}{suffix}"
        copy.write_bytes(content)
        return str(copy)
