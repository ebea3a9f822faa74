"""How large a file elsewhere may be: asked before it is fetched, and counted while it comes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mope.remote.copies import most_bytes
from mope.remote.failures import NotThere

_refused: dict[tuple[str, float, int], str] = {}
_MOST_REFUSED = 10_000
_LARGE = 10 * 2**20  # bytes from which on a bar is shown


class TooLarge(NotThere):
    """A file is larger than may be fetched."""


class Bound(NamedTuple):
    """A largest size.

    Attributes:
        bytes: of a file.
        how: what raises it, such as a flag.
    """

    bytes: int
    how: str

    def check(self, name: str, size: int | None) -> None:
        """Make sure that a file isn't larger.

        Args:
            name: how it is called.
            size: bytes; None where its storage doesn't say.

        Raises:
            TooLarge: it is.
        """
        if size is not None and size > self.bytes:
            most = self.bytes / 2**20
            words = f"{most:,.0f} MB" if most >= 1 else f"{self.bytes:,} bytes"
            raise TooLarge(f"{name} is larger than {words}: raise {self.how} to take it.")


@contextmanager
def refused_once(name: str, asked: float, bound: Bound) -> Iterator[None]:
    """Say again of a file what was said when it was found too large, instead of fetching it as far again.

    A row is looked at several times, and a stranger's storage need not say how large its files are.

    Args:
        name: how it is called.
        asked: when sources were last to be asked anew.
        bound: its largest size.

    Raises:
        TooLarge: it is, or was then.
    """
    key = (name, asked, bound.bytes)
    if key in _refused:
        raise TooLarge(_refused[key])
    try:
        yield
    except TooLarge as error:
        if len(_refused) >= _MOST_REFUSED:
            _refused.clear()
        _refused[key] = str(error)
        raise


def tightest(own: Bound | None) -> Bound:
    """A file's own bound, or that of all copies together, whichever is less."""
    every = Bound(int(most_bytes()), "MOPE_REMOTE_GB")
    return every if own is None or own.bytes > every.bytes else own


def download(system: Any, path: str, draft: Path, name: str, size: int | None, bound: Bound) -> None:
    """Fetch a file, but for no longer than it is within its bound, whatever its storage says of its size.

    Args:
        system: its file system.
        path: there.
        draft: where to write it.
        name: how it is called.
        size: what the storage says, in bytes; None if nothing.
        bound: its largest size.

    Raises:
        TooLarge: it is.
        ConnectionError: less or more came than was said.
    """
    from fsspec.callbacks import NoOpCallback, TqdmCallback

    options = {"desc": f"fetching {name}", "unit": "B", "unit_scale": True, "leave": False, "disable": None}
    bar = TqdmCallback(tqdm_kwargs=options) if (size or 0) >= _LARGE else NoOpCallback()
    came, show = 0, bar.relative_update

    def count(inc: int = 1) -> None:
        nonlocal came
        came += inc
        bound.check(name, came)
        show(inc)

    bar.relative_update = count  # file systems call it with each part that they have written
    with bar:
        system.get_file(path, str(draft), callback=bar)
    got = draft.stat().st_size
    bound.check(name, got)  # of one that doesn't call it
    if size is not None and got != size:
        raise ConnectionError(f"{got:,} bytes came of {size:,}")
