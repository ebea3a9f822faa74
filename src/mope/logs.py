"""What the library says while it works: lines of the logger "mope", at level INFO.

They are printed, unless `logging.getLogger("mope")` is told otherwise: by a level, or by another handler in
place of this one.
"""

import logging


class _Printer(logging.Handler):
    """Prints lines without breaking a progress bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record))


LOGGER = logging.getLogger("mope")
if not LOGGER.handlers:
    LOGGER.addHandler(_Printer())
    LOGGER.propagate = False
if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(logging.INFO)


def say(line: str) -> None:
    """Say a line."""
    LOGGER.info("%s", line)
