"""The one error a user is meant to see, and how its sentence shows what others wrote."""

import reprlib
import signal
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 60, 60


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it and exits
    with code 2; nothing else is ever shown as a traceback on purpose.
    """

    def __init__(self, message: str = ""):
        # A loader's worker gives an error back with its traceback before the sentence.
        super().__init__(message.rpartition("mope.errors.UserError: ")[2].rstrip("\n"))


class Interrupted(UserError):
    """Training was stopped from outside, and what it had learned is saved.

    Attributes:
        code: what the command line exits with, as a shell does for the signal.
    """

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.code = 128 + received


def shown(value: Any, most: int = 60) -> str:
    """A cell, a name or a reason as a sentence shows it: in one line, without what can't be printed, and cut
    where it is long.

    Args:
        value: a text as it stands; anything else as Python writes it.
        most: characters that are kept.
    """
    text = value[: most + 1] if isinstance(value, str) else _REPR.repr(value)
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."
