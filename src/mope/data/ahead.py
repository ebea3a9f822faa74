"""Files elsewhere that a stream's rows name, fetched while the rows before them are worked on."""

from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from mope.data.readers import Reader
from mope.data.stream import Item
from mope.media.cells import BadCell, files_elsewhere
from mope.remote import RemotePath, fetch_one

ROWS = 32
"""That are held at most until it is their turn."""

THREADS = 8
"""That fetch, in a process; as many as fetch the files of a batch."""

_Row = tuple[int, Item]


def fetched_ahead(
    rows: Iterator[_Row],
    readers: Sequence[Reader],
    columns: Collection[str] | None,
    wanted: int | None = None,
) -> Generator[_Row]:
    """The same rows in the same order, whose files elsewhere are there when it is their turn.

    Of rows that name no such files none is held. What can't be fetched is said at its own row, and what goes
    wrong with the rows themselves behind those before it. Closing the iterator ends its threads, each after
    the file that it is fetching.

    Args:
        rows: each with its number, taken up to `ROWS` ahead.
        readers: of the inputs that may name files.
        columns: of a row that are read, see `Item`.
        wanted: how many rows are sure to be asked for: beyond them none is taken before it is; None for all.

    Raises:
        UserError: a storage can't be reached; what isn't there shows when the row is read.
    """
    media = [reader for reader in readers if reader.names_files]
    waiting: deque[tuple[_Row, list[Future[None]]]] = deque()
    pool: ThreadPoolExecutor | None = None
    failure: Exception | None = None
    ended, taken = False, 0
    try:
        while True:
            while not ended and (not waiting or (len(waiting) < ROWS and (wanted is None or taken < wanted))):
                try:
                    number, item = next(rows)
                except StopIteration:
                    ended = True
                    break
                except Exception as error:
                    ended, failure = True, error
                    break
                taken += 1
                item = item.opened(columns)
                files = _files(item, media, columns)
                if files and pool is None:
                    pool = ThreadPoolExecutor(THREADS, "fetching ahead")
                fetching = [] if pool is None else [pool.submit(fetch_one, file) for file in files]
                waiting.append(((number, item), fetching))
                if not fetching and len(waiting) == 1:
                    break
            if not waiting:
                break
            row, fetching = waiting.popleft()
            for one in fetching:
                one.result()
            yield row
        if failure is not None:
            raise failure
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _files(item: Item, media: Sequence[Reader], columns: Collection[str] | None) -> list[RemotePath]:
    """The files elsewhere that a row names; none of a row that can't be read."""
    found: list[RemotePath] = []
    with suppress(BadCell):
        row = item.read(columns)
        found = files_elsewhere((reader.cell(row) for reader in media), item.folder)
    return found
