"""The one error a user is meant to see."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it and exits
    with code 2; nothing else is ever shown as a traceback on purpose.
    """

    def __init__(self, message: str = ""):
        # A loader's worker gives an error back with its traceback before the sentence.
        super().__init__(message.rpartition("mope.errors.UserError: ")[2].rstrip("\n"))
