"""The one error a user is meant to see."""

import signal


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
