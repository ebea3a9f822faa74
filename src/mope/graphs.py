"""Faster passes of a model that only predicts: compiled, or recorded as CUDA graphs.

A CUDA graph is a pass whose kernels were recorded once and are launched again all together, which spares what
the CPU does for each. It is of one shape of batch, and reads and writes where it did when it was recorded.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from mope.errors import UserError

Compile = Literal["none", "default", "graphs"]
"""How passes are made faster: not at all, by `torch.compile`, or by CUDA graphs."""

Batch = Mapping[str, Mapping[str, Tensor]]
"""Keyword arguments of each encoder, by its input's name."""

T = TypeVar("T")

_IDS, _MASK = "input_ids", "attention_mask"
_TEXTS = (_IDS, _MASK, "token_type_ids")
_STEP = 16
"""Lengths of texts are rounded up to multiples of this many tokens."""
_MOST = 64
"""Graphs that are held; each has its own inputs and outputs, and all have one pool of memory between."""

_MET = 4096
"""Shapes that are remembered."""

_recording = threading.Lock()  # PyTorch records one graph at a time, of all that a process has
_read: ContextVar[list[Any] | None] = ContextVar("mope_graph_reads", default=None)


def require_compile(way: str, device: torch.device) -> None:
    """Make sure that a device has passes of a kind.

    Raises:
        UserError: it hasn't, or there is no such kind.
    """
    if way not in ("none", "default", "graphs"):
        raise UserError(f"compile is '{way}': take none, default or graphs.")
    if way == "graphs" and device.type != "cuda":
        raise UserError(f"CUDA graphs take a CUDA GPU, and the device is {device.type}: leave graphs out.")


def is_recorded() -> bool:
    """Whether what runs now becomes a graph, which can't depend on what is in a batch."""
    return torch.compiler.is_compiling() or _is_capturing()


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


_NOTHING: Any = object()


class Cache:
    """What passes would make anew again and again: the latest results, by what they depend on.

    A graph that reads one keeps it alive, and leaves none of its own here: that holds nothing before the
    graph has run. A copy begins empty.

    Args:
        size: how many are held.
    """

    def __init__(self, size: int):
        self.size = size
        self._entries: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key, made if it isn't here."""
        if torch.compiler.is_compiling():
            return make()
        # A tensor made in inference mode can't be used in training.
        key = (key, torch.is_inference_mode_enabled())
        found = self._entries.get(key, _NOTHING)  # another thread may drop it meanwhile
        if found is not _NOTHING:
            return keep_for_graph(found)
        made = make()
        if not _is_capturing():
            for old in list(self._entries)[: max(0, len(self._entries) - self.size + 1)]:
                self._entries.pop(old, None)
            self._entries[key] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "_entries": {}}

    def clear(self) -> None:
        """Hold nothing any more."""
        self._entries.clear()


def keep_for_graph(value: T) -> T:
    """A value that a pass reads and that may be dropped later; a graph that is being recorded keeps it."""
    if not torch.compiler.is_compiling() and (reads := _read.get()) is not None:
        reads.append(value)
    return value


@contextmanager
def _reads() -> Iterator[list[Any]]:
    found: list[Any] = []
    token = _read.set(found)
    try:
        yield found
    finally:
        _read.reset(token)


def faster(
    function: Callable[[Batch], list[Tensor]], way: Compile, device: torch.device, longest: Mapping[str, int]
) -> Callable[[Batch], list[Tensor]]:
    """A function of a batch that gives the same, to rounding, in fewer steps.

    Args:
        function: a batch on the device -> tensors (B, ...).
        way: how; "none" gives the function itself.
        device: where it runs.
        longest: see `Graphs`.

    Raises:
        UserError: the device hasn't this way; or when it is called first, the function can't be made faster.
    """
    require_compile(way, device)
    if way == "none":
        return function
    if way == "graphs":
        return Graphs(function, longest)
    compiled = torch.compile(_of_its_own(function))

    def call(batch: Batch) -> list[Tensor]:
        try:
            return compiled(batch)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"This model can't be compiled here ({reason}): leave compile out.") from error

    return call


def _of_its_own(function: Callable[[Batch], list[Tensor]]) -> Callable[[Batch], list[Tensor]]:
    """The function, in code that no other one shares: PyTorch compiles one piece of code for so many models
    only, and runs others as they are."""

    def run(batch: Batch) -> list[Tensor]:
        return function(batch)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


class Graphs:
    """A function of a batch as CUDA graphs, one for each shape of batch that comes again.

    Few shapes come: rows are filled up to the next power of two by copies of the last one, and texts to
    multiples of 16 tokens, which no mask attends to; what is made of these is cut off. A shape that comes for
    the first time is run without: clips of sound have as many shapes as lengths. Results are the function's,
    to rounding. Weights must stay where they are; threads take turns.

    Args:
        function: a batch on the device -> tensors (B, ...), without a look at what is in the batch.
        longest: by input name, how many tokens its texts may have.
    """

    def __init__(self, function: Callable[[Batch], list[Tensor]], longest: Mapping[str, int] | None = None):
        self.function, self.longest = function, dict(longest or {})
        self._graphs: dict[Hashable, _Graph] = {}
        self._met: dict[Hashable, None] = {}
        self._lock = threading.Lock()
        self._pool: Any = None

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list[Tensor]:
        """Run a batch.

        Raises:
            UserError: the function can't be recorded.
        """
        rows = rows_of(batch)
        batch = fill_up(batch, self.longest)
        key = tuple(
            (name, part, value.dtype, value.device, tuple(value.shape))
            for name, inputs in sorted(batch.items())
            for part, value in sorted(inputs.items())
        )
        with self._lock:
            graph = self._graphs.pop(key, None)
            if graph is None and key not in self._met:
                self._met[key] = None
                if len(self._met) > _MET:
                    self._met.pop(next(iter(self._met)))
                return [output[:rows] for output in self.function(batch)]
            if graph is None:
                graph = self._record(batch)
            self._graphs[key] = graph  # the last one is used last
            return [output[:rows].clone() for output in graph.replay(batch)]

    def _record(self, batch: Batch) -> "_Graph":
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        while len(self._graphs) >= _MOST:
            self._graphs.pop(next(iter(self._graphs)))
        try:
            with _recording:
                return _Graph(self.function, batch, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"This model can't be recorded as CUDA graphs ({reason}): leave them out."
            ) from error


class _Graph:
    """A function recorded for one shape of batch."""

    def __init__(self, function: Callable[[Batch], list[Tensor]], batch: Batch, pool: Any):
        self.inputs = {
            name: {part: value.clone() for part, value in inputs.items()} for name, inputs in batch.items()
        }
        # What is chosen or laid out in a first pass is so outside the graph.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with (
            _reads() as self.reads,
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.outputs = function(self.inputs)

    def replay(self, batch: Batch) -> list[Tensor]:
        """What the function makes of a batch, until the next graph runs."""
        for name, inputs in batch.items():
            for part, value in inputs.items():
                self.inputs[name][part].copy_(value)
        self.graph.replay()
        return self.outputs


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return next(len(value) for inputs in batch.values() for value in inputs.values())


def fill_up(batch: Batch, longest: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    """A batch of a shape that comes often, see `Graphs`: its own rows first, and tokens of each in front."""
    rows = rows_of(batch)
    more = (1 << (rows - 1).bit_length()) - rows
    filled = {}
    for name, inputs in batch.items():
        found = dict(inputs)
        if name in longest and _IDS in inputs and _MASK in inputs:
            length = inputs[_IDS].shape[1]
            tokens = min(-(-length // _STEP) * _STEP, max(longest[name], length)) - length
            for part in set(_TEXTS) & set(inputs):
                found[part] = torch.nn.functional.pad(inputs[part], (0, tokens))
        filled[name] = {
            part: torch.cat([value, value[-1:].expand(more, *value.shape[1:])]) if more else value
            for part, value in found.items()
        }
    return filled
