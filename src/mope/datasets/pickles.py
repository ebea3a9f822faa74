"""Pickled files, read without running code."""

import io
import pickle
from pathlib import Path
from typing import Any

from mope.errors import UserError

_PLAIN = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _Plain(pickle.Unpickler):
    """Numbers, texts, lists, tuples, mappings and sets; whatever names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which would run code")


def read_pickle(file: Path) -> Any:
    """Plain data out of a pickle of any protocol, of Python 2 as well, whose texts are read as Latin-1.

    Raises:
        UserError: it is broken, or holds more than plain data.
    """
    try:
        return _Plain(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises whatever it likes
        raise UserError(f"{file} can't be read as plain data: {error}.") from None
