"""The app of a run or of several: `/v1/predict`, `/v1/runs`, `/healthz`, `/metrics`, `/docs`, a page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from mope.predictor import Predictor
from mope.serve.engine import Engine
from mope.serve.limits import CALLER, BodyLimit, OneShape, Refusal, said
from mope.serve.metrics import Metrics, Watch
from mope.serve.rows import Failure, RowParser, answer_model, answer_of, charset_of
from mope.serve.runs import OneRun, Runs
from mope.serve.security import Guard, PageGuard
from mope.serve.served import Served
from mope.serve.settings import ServeSettings

Routing = Annotated[bool, Query(description="Add the scores of each layer's experts.")]

_CODES = {
    400: "The request is broken: malformed JSON, a malformed form, or headers that contradict each other.",
    401: "The token is missing or wrong.",
    403: "A local server was asked by another host's name, or by another site's page.",
    408: "The headers or the body came too slowly.",
    413: "The body is too large, a picture has too many pixels, or audio or video is too long.",
    415: "The body is neither JSON nor a form.",
    422: "The body has another shape, unknown or missing inputs, or too many rows.",
    431: "The headers are too large, or too many.",
    500: "Something went wrong in the server.",
    503: "The queue is full, or too many are connected: try again, as Retry-After says.",
}


def build_app(
    predictor: Predictor,
    settings: ServeSettings | None = None,
    *,
    name: str | None = None,
    thread: bool = True,
) -> FastAPI:
    """The app of a run, for any ASGI server.

    Args:
        predictor: the run. The app's threads own it until the app shuts down.
        settings: the limits, the token and the host; by default those of a local server.
        name: the run's; None for its folder's.
        thread: whether the model has a thread of its own; else the caller runs `app.state.engine.work()`, in
            the process's first thread for speed: GNU's OpenMP lets helpers of others sleep all the time.

    Raises:
        UserError: a package that reads the run's inputs isn't installed.
    """
    settings = settings or ServeSettings()
    served = Served(name or predictor.run.absolute().name, predictor, settings)
    app = _app(f"mope: {served.name}", OneRun(served), settings, predictor.device.type, thread)
    parser = served.parser
    content, _ = parser.body_schema()

    about = _about_predict(settings, answer_model(predictor.settings), content)

    @app.post("/v1/predict", summary="Predict one row or several", **about)
    async def predict(request: Request, routing: Routing = False) -> Response:
        return await _answer(app.state.engine, served, request, routing)

    _refuse_others(app, "/v1/predict", "POST")
    _add_definitions(app, parser)
    if settings.page:
        from mope.serve.page import mount_page

        app, folder = mount_page(app, app.state.engine, served)
        app.add_middleware(PageGuard, settings=settings, folder=folder, on_refusal=app.state.metrics.refuse)
    return _guarded(app, settings)


def build_runs_app(runs: Runs, settings: ServeSettings | None = None, *, thread: bool = True) -> FastAPI:
    """The app of several runs, whose rows share the passes of the encoders that the runs share.

    Args:
        runs: the runs.
        settings, thread: see `build_app`.
    """
    settings = settings or ServeSettings()
    app = _app("mope: several runs", runs, settings, runs.device.type, thread)

    @app.post("/v1/predict", include_in_schema=False)
    async def which() -> None:
        text = "This server has several runs, which /v1/runs lists: ask one at /v1/runs/NAME/predict."
        raise Refusal(404, "run", text)

    if settings.page:
        from mope.serve.choice import PAGE

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return HTMLResponse(PAGE)

    return _guarded(app, settings)


def _app(title: str, runs: Runs | OneRun, settings: ServeSettings, device: str, thread: bool) -> FastAPI:
    """The app with the routes that all have."""
    metrics = Metrics()
    engine = Engine(settings, metrics, device == "cpu", thread)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.open()
        runs.open()
        yield
        runs.close()
        await asyncio.get_running_loop().run_in_executor(None, engine.close)

    # Pages of FastAPI's own refer to scripts on the web; /docs is as much as is wanted of them.
    app = FastAPI(title=title, version="1", lifespan=lifespan, redoc_url=None)
    app.state.engine, app.state.metrics, app.state.runs = engine, metrics, runs
    _add_runs(app, engine, runs)
    _add_status(app, metrics)
    _add_errors(app, metrics)
    _describe(app)
    # The last one added is the first to be asked.
    app.add_middleware(OneShape)
    return app


def _guarded(app: FastAPI, settings: ServeSettings) -> FastAPI:
    """The app behind its limits."""
    metrics = app.state.metrics
    app.add_middleware(BodyLimit, settings=settings, on_refusal=metrics.refuse)
    app.add_middleware(Guard, settings=settings, on_refusal=metrics.refuse)
    app.add_middleware(Watch, metrics=metrics)
    return app


def _about_predict(settings: ServeSettings, answer: Any, content: Any) -> dict[str, Any]:
    """How a path that predicts is described."""
    responses: dict[int | str, Any] = {200: {"model": answer, "description": "A prediction for each row."}}
    for code, text in _CODES.items():
        if code not in (401, 403) or (code == 401) == bool(settings.callers):
            responses[code] = {"model": Failure, "description": text}
    responses[503]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    # The guard has looked at the token by now; this writes it into the schema.
    token = [Depends(HTTPBearer(auto_error=False))] if settings.callers else []
    body = {"requestBody": {"required": True, "content": content}}
    return {"responses": responses, "dependencies": token, "openapi_extra": body}


def _add_runs(app: FastAPI, engine: Engine, runs: Runs | OneRun) -> None:
    @app.get("/v1/runs", summary="The runs: their tasks, inputs and metrics")
    async def listed() -> dict[str, Any]:
        return {"runs": await asyncio.get_running_loop().run_in_executor(engine.files, runs.describe_all)}

    @app.get("/v1/runs/{name}", summary="One run")
    async def described(name: str) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(engine.files, runs.describe, name)

    content = {"application/json": {"schema": {"type": "object"}}}
    content["multipart/form-data"] = content["application/json"]
    about = _about_predict(engine.settings, dict[str, Any], content)
    about["responses"][404] = {"model": Failure, "description": "There is no such run."}

    @app.post("/v1/runs/{name}/predict", summary="Predict one row of a run or several", **about)
    async def predict(name: str, request: Request, routing: Routing = False) -> Response:
        served = runs.held(name)
        if served is None:
            # A wrong name is said at once, not when loads have come to it.
            await asyncio.get_running_loop().run_in_executor(engine.files, runs.require, name)
            load = engine.load(partial(runs.get, name), _caller(request))
            served = await asyncio.wrap_future(load)
        return await _answer(engine, served, request, routing)

    _refuse_others(app, "/v1/runs/{name}/predict", "POST")
    _refuse_others(app, "/v1/runs/{name}", "GET")
    _refuse_others(app, "/v1/runs", "GET")


def _caller(request: Request) -> str | None:
    """Who asks, where callers have tokens of their own."""
    return getattr(request.state, CALLER, None)


async def _answer(engine: Engine, served: Served, request: Request, routing: bool) -> Response:
    """Predictions of a request's rows."""
    parser = served.parser
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        parse = partial(parser.parse, await request.body())
    elif kind == "multipart/form-data":
        if charset_of(request.headers["content-type"]) not in ("", "utf-8"):
            raise Refusal(400, "form", "The form is broken: it must be in UTF-8.")
        row = await parser.parse_form(request)
        parse = partial(list, [row])
    else:
        raise Refusal(415, "media", "The body is application/json or multipart/form-data.")
    futures = await asyncio.wrap_future(engine.ask(served, parse, _caller(request)))
    found = await asyncio.gather(*map(asyncio.wrap_future, futures))
    return JSONResponse(answer_of(found, routing))


def _refuse_others(app: FastAPI, path: str, method: str) -> None:
    """Say which method a path takes: the page stands behind all paths, and would answer what it can."""
    anything: Any = _OtherMethod(f"Only {method} is for {path}.", method)
    app.router.add_route(path, anything, include_in_schema=False)


class _OtherMethod:
    """An endpoint for whatever method: a function would be one for GET alone."""

    def __init__(self, text: str, method: str):
        self.refusal = HTTPException(405, text, {"Allow": method})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await said(self.refusal)(scope, receive, send)


def _add_status(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Whether the server is up")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path in ("/healthz", "/metrics", "/docs", "/openapi.json"):
        _refuse_others(app, path, "GET")


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Refusal):
            metrics.errors.labels(error.reason).inc()
        elif request.url.path.startswith("/v1/"):
            metrics.errors.labels("form" if error.status_code == 400 else "http").inc()
        return said(error)

    @app.exception_handler(RequestValidationError)
    async def misused(request: Request, error: RequestValidationError) -> Response:
        metrics.errors.labels("shape").inc()
        first = error.errors()[0]
        return said(Refusal(422, "shape", f"'{first['loc'][-1]}': {first['msg']}."))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        metrics.errors.labels("internal").inc()
        return JSONResponse({"error": "Something went wrong in the server: its log says what."}, 500)


def _add_definitions(app: FastAPI, parser: RowParser) -> None:
    """Put the models of the run's rows into the app's schema."""
    schema = app.openapi

    def with_rows() -> dict[str, Any]:
        _, definitions = parser.body_schema()
        found = schema()
        found["components"]["schemas"].update(definitions)
        return found

    app.openapi = with_rows


def _describe(app: FastAPI) -> None:
    """Give the app a schema whose refusals are all of one shape."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for name in ("HTTPValidationError", "ValidationError"):
                found.setdefault("components", {}).setdefault("schemas", {}).pop(name, None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = schema
