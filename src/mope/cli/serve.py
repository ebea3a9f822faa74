"""`mope serve`: a run behind HTTP; and `mope bench serve`."""

import argparse
import json
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from mope.cli.output import LIMITS, add_compile, add_limits, add_plugin, add_verb, load_plugins, print_table
from mope.errors import UserError

if TYPE_CHECKING:
    from mope.serve.settings import ServeSettings

_PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")
_FILES = 256
"""That a server opens beside its connections, generously."""


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(verbs, "serve", serve, "serve runs over HTTP: a JSON API, and a page to try them on")
    verb.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run's folder; several, or a folder of runs, share the encoders that they have in common",
    )
    verb.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1: this machine alone)")
    verb.add_argument("--port", type=int, default=7860, help="0 for any that is free (7860)")
    verb.add_argument(
        "--token", help="what callers must name; without it, MOPE_TOKEN of the environment, or none"
    )
    verb.add_argument(
        "--tokens",
        metavar="FILE",
        help="tokens of several callers, a line NAME TOKEN for each; see --max-queue",
    )
    verb.add_argument("--no-page", action="store_true", help="the JSON API alone")
    verb.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows per forward pass (32)")
    add_limits(verb, "of a request's body")
    for name, default, kind, text in (
        ("characters", 20_000, int, "of a text"),
        ("rows", 64, int, "per request"),
        ("queue", 512, int, "rows that wait for the model, of a run; with --tokens, of a run and a caller"),
        ("connections", 512, int, "open at the same time"),
        ("address-connections", None, int, "open from one address (256, from this machine any number)"),
        ("header-bytes", 32_768, int, "of a request's address and headers"),
        ("headers", 100, int, "of a request"),
        ("header-seconds", 10, float, "until a request's headers are there"),
        ("body-seconds", 20, float, "for a body; each 4,096 bytes that came give one back"),
        ("grace-seconds", 10, float, "for requests that are there when the server is told to end"),
    ):
        shown = text if default is None else f"{text} ({default:,})"
        verb.add_argument(f"--max-{name}", type=kind, default=default, metavar="N", help=shown)
    verb.add_argument(
        "--max-runs", type=int, default=1000, metavar="N", help="of several runs, in memory at once (1,000)"
    )
    add_plugin(verb)
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")
    add_compile(verb)


def add_bench(bench: Any) -> None:
    """Add the benchmark."""
    verb = add_verb(bench, "serve", bench_serve, "measure a served run beside the run itself")
    verb.add_argument("run", metavar="RUN", help="a run's folder, whose test rows are asked for")
    verb.add_argument("--repeats", type=int, default=200, metavar="N", help="single rows (200)")
    verb.add_argument("--clients", type=int, default=64, metavar="N", help="that ask at the same time (64)")
    verb.add_argument("--rows", type=int, default=256, metavar="N", help="rows per round of clients (256)")
    verb.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of clients (5)")
    verb.add_argument(
        "--runs", type=int, metavar="N", help="instead, N runs behind one server beside one of them"
    )
    add_plugin(verb)
    verb.add_argument("--device", help="cpu, cuda or mps; without it, the best there is")


def serve(options: argparse.Namespace) -> None:
    """`mope serve RUN ...`: until it is interrupted."""
    from mope.serve.sources import find_runs

    runs, folders = find_runs(options.runs)
    is_one = len(runs) == 1 and not folders
    require_packages(is_one and not options.no_page)
    from mope.serve.connections import make_server

    settings = settings_of(options)
    load_plugins(options)
    _allow_files(settings.connections)
    # Taken before the model is loaded: a port that is in use is known at once.
    listener = _listen(settings.host, settings.port)
    # While the model is loaded, too, files are removed at the end.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app = _app(options, runs, folders, settings)
        address = _address(settings.host, listener.getsockname()[1])
        if options.json:
            print(json.dumps({"address": address, "page": settings.page}), flush=True)
        else:
            where = "the page is there, the API" if settings.page else "the API is"
            path = "/v1/predict" if is_one else "/v1/runs"
            served = ", ".join(options.runs)
            print(f"Serving {served} at {address} - {where} at {path} and described at /docs.")
            print("Stop it with Ctrl-C.", flush=True)
        _run(make_server(app, settings), listener, app.state.engine)
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def _app(options: argparse.Namespace, runs: Any, folders: Any, settings: "ServeSettings") -> Any:
    """The app of one run, or of several."""
    from mope.predictor import Predictor
    from mope.serve.app import build_app, build_runs_app
    from mope.serve.runs import Runs

    if len(runs) == 1 and not folders:
        ((name, run),) = runs.items()
        predictor = Predictor(run, device=options.device, compile=options.compile)
        return build_app(predictor, settings, name=name, thread=False)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = Runs(
        runs,
        folders,
        settings,
        device=options.device,
        compile=options.compile,
        most=options.max_runs,
        report=report,
    )
    return build_runs_app(found, settings, thread=False)


def settings_of(options: argparse.Namespace) -> "ServeSettings":
    """How a run is to be served."""
    from mope.serve.settings import ServeSettings, read_tokens

    if options.tokens is not None and options.token is not None:
        raise UserError("--token is one for all callers, --tokens one for each: give either.")
    token = (
        os.environ.get("MOPE_TOKEN") if options.token is None and options.tokens is None else options.token
    )
    given = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
    return ServeSettings(
        host=options.host,
        port=options.port,
        token=token,
        tokens={} if options.tokens is None else read_tokens(options.tokens),
        page=not options.no_page,
        **{name.removeprefix("max_"): value for name, value in given.items()},
        characters=options.max_characters,
        rows=options.max_rows,
        queue=options.max_queue,
        batch=options.batch_size,
        connections=options.max_connections,
        address_connections=options.max_address_connections,
        header_bytes=options.max_header_bytes,
        headers=options.max_headers,
        header_seconds=options.max_header_seconds,
        body_seconds=options.max_body_seconds,
        grace_seconds=options.max_grace_seconds,
    )


def _run(server: Any, listener: socket.socket, engine: Any) -> None:
    """Serve in a thread and run the model in this one, the first, until a signal says to end.

    Whatever ends the server's thread by itself is raised here.
    """
    failures: list[BaseException] = []

    def listen() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # such as SystemExit, of an app that doesn't start
            failures.append(error)
        finally:
            engine.close()

    def end(*_: Any) -> None:
        server.force_exit = server.should_exit  # the second signal doesn't wait for requests
        server.should_exit = True

    before = {name: signal.signal(name, end) for name in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=listen, name="mope-http")
    thread.start()
    engine.work()
    thread.join()
    for name, handler in before.items():
        signal.signal(name, handler)
    if failures:
        raise failures[0]


def require_packages(page: bool) -> None:
    """Make sure that what a server takes is installed.

    Raises:
        UserError: saying what to install.
    """
    for name in (*_PACKAGES, *(["gradio"] if page else [])):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f"A server takes the package {name}: pip install 'mope-fusion[serve]'.") from None


def _allow_files(connections: int) -> None:
    """Let the process open as many files as its connections and itself take, where there is such a limit."""
    if sys.platform == "win32":
        return
    import resource

    from mope.serve.connections import TURNED_AWAY

    needed = connections + TURNED_AWAY + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = max(1, hard - TURNED_AWAY - _FILES)
        raise UserError(
            f"--max-connections is {connections}, but a process may open {hard} files: take up to {most}."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError:
        raise UserError(f"There is no host '{host}' to listen at.") from None
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two may be bound to a port as long as neither listens
    except OSError as error:
        listener.close()
        raise UserError(
            f"Can't listen at {host}, port {port}: {error.strerror}; try another --port."
        ) from None
    return listener


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bench_serve(options: argparse.Namespace) -> None:
    """`mope bench serve RUN`."""
    require_packages(page=False)
    from mope.bench.serve import bench_serve as run
    from mope.bench.turns import Ratio

    if min(options.repeats, options.clients, options.rows, options.rounds) < 1:
        raise UserError("A benchmark takes repeats, clients, rows and rounds of at least 1.")
    load_plugins(options)
    common = {name: getattr(options, name) for name in ("clients", "rows", "rounds", "device")}
    if options.runs is not None:
        _bench_runs(options, common)
        return
    result = run(options.run, repeats=options.repeats, plugins=options.plugin, **common)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    single, parallel = result["single"], result["parallel"]
    rows = [
        [
            f"one row, median of {options.repeats}",
            f"{single['bare']:.1f} ms, bare forward",
            f"{single['served']:.1f} ms",
            str(Ratio(single["ratio"], single["interval"])),
        ],
        [
            f"{options.clients} clients, median of {options.rounds}",
            f"{parallel['offline']:.1f} rows/s, offline",
            f"{parallel['served']:.1f} rows/s",
            str(Ratio(parallel["ratio"], parallel["interval"])),
        ],
    ]
    print_table(["", "the run itself", "served", "ratio"], rows)
    busy = "" if result["load"] is None else f"; the machine's load was {result['load']:.1f} at the start"
    print(f"Threads of PyTorch: {result['threads']}{busy}.")


def _bench_runs(options: argparse.Namespace, common: dict[str, Any]) -> None:
    """`mope bench serve RUN --runs N`."""
    from mope.bench.runs import bench_runs
    from mope.bench.turns import Ratio

    if options.runs < 1:
        raise UserError(f"--runs is {options.runs}: a server has at least one.")
    result = bench_runs(options.run, options.runs, plugins=options.plugin, **common)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    memory, speed = result["memory"], result["rows_per_second"]
    one, every = (f"{memory[name] / 2**20:.0f} MB" for name in ("one", "all"))
    rows = [
        ["memory of the server", one, every, f"{memory['ratio']:.3f}"],
        [
            f"{options.clients} clients, median of {options.rounds}",
            f"{speed['one']:.1f} rows/s",
            f"{speed['all']:.1f} rows/s",
            str(Ratio(speed["ratio"], speed["interval"])),
        ],
    ]
    print_table(["", "one run", f"{options.runs} runs", "ratio"], rows)
    print(f"Threads of PyTorch: {result['threads']}.")
