"""Pickled files, read without running code."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy

from mope.errors import UserError

_NUMBERS = re.compile("b1|[iu][1248]|f[248]")  # types of arrays that hold numbers and nothing else


class _Type:
    """What is read for a `numpy.dtype`: its name, and its bytes' order."""

    def __init__(self, name: str, *_: Any):
        if not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(f"it holds an array of {name!r:.20}, not of numbers")
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError("it holds an array whose bytes have no order")
        self.order = state[1]


class _Array(list):
    """What is read for an array of numbers: a list of them, of lists for several dimensions.

    NumPy itself is never given what the file says: a made-up type would let it take bytes for addresses.
    """

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        numbers = numpy.frombuffer(content, kind.order + kind.name)
        self[:] = numbers.reshape(shape, order="F" if by_column else "C").tolist()


_PLAIN = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, name: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda kind, shape, name: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Plain(pickle.Unpickler):
    """Numbers, texts, lists, tuples, mappings, sets and arrays; whatever names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which would run code")


def read_pickle(file: Path) -> Any:
    """Plain data out of a pickle of any protocol, of Python 2 as well, whose texts are read as Latin-1.

    An array of numbers is read as a list.

    Raises:
        UserError: it is broken, or holds more than plain data.
    """
    try:
        return _Plain(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises whatever it likes
        raise UserError(f"{file} can't be read as plain data: {error}.") from None
