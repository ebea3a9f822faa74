"""What goes wrong with a file elsewhere: tried again where that may help, else told in a sentence."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mope.errors import UserError
from mope.files import cache_folder

WAITS = (0.5, 2.0, 5.0)
"""Seconds before each further try."""

_PATIENT = ("s3fs", "gcsfs", "adlfs")
"""Packages whose file systems try again themselves."""

_Found = TypeVar("_Found")
_OVERLOADED = (408, 425, 429)
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")
_HOW = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket "
    "FSSPEC_S3_ANON=true",
    "gs": "run `gcloud auth application-default login`; for a public bucket set FSSPEC_GS_TOKEN=anon",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NotThere(UserError):
    """There is no such file, or it may not be read: of one row's file, it is that row that can't be used."""


def retried(system: Any, action: Callable[[], _Found]) -> _Found:
    """What an action gives, tried again where the network or a server failed it.

    Args:
        system: the file system that it asks; some try again themselves.
        action: what is tried.
    """
    for wait in () if type(system).__module__.partition(".")[0] in _PATIENT else WAITS:
        try:
            return action()
        except Exception as error:
            if _kind(error) != "away":
                raise
            time.sleep(wait)
    return action()


@contextmanager
def told(name: str) -> Iterator[None]:
    """Tell what goes wrong inside in a sentence.

    Args:
        name: how the file is called.

    Raises:
        UserError: something did; a NotThere where it is the file that isn't there.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _sentence(name, error) from None


def _sentence(name: str, error: Exception) -> UserError:
    kind, reason = _kind(error), _reason(error)
    scheme = name.partition("://")[0]
    if kind == "missing":
        return NotThere(f"There is no file {name}.")
    if kind == "bucket":
        return UserError(f"There is no bucket for {name}: check how it is spelt.")
    if kind == "forbidden":
        return NotThere(
            f"{name} may not be read with the credentials there are: ask its owner, or set others."
        )
    if kind == "refused":
        return NotThere(f"{name} isn't given ({reason}): check its address.")
    if kind == "credentials":
        how = _HOW.get(scheme, "set those of its storage")
        return UserError(f"There are no credentials for {name}: {how}.")
    if kind == "package":
        return UserError(
            f"A package for {name} isn't there ({error}): s3, gs and https take pip install "
            "'mope-fusion[remote]'."
        )
    if kind == "scheme":
        return UserError(
            f"There is no '{scheme}://' in {name}: take s3, gs, hf, https, or another of fsspec's."
        )
    if kind == "away":
        return UserError(
            f"{name} can't be reached ({reason}): check its address and the network, and run again."
        )
    if kind == "here":
        return UserError(f"No copy of {name} can be kept ({reason}): free disk space, or set MOPE_CACHE.")
    # A name that no file can have is a row's fault, anything else that of all rows.
    return (NotThere if isinstance(error, ValueError) else UserError)(f"Can't read {name}: {reason}.")


def _kind(error: BaseException) -> str:
    """What sort of failure it is."""
    chain = list(_chain(error))
    names = [type(one).__name__ for one in chain]
    statuses = [status for one in chain if (status := _status(one)) is not None]
    if any(name in _CREDENTIALS for name in names):
        return "credentials"
    if "NoSuchBucket" in names or any("bucket does not exist" in str(one) for one in chain):
        return "bucket"
    if any(isinstance(one, ImportError) for one in chain):
        return "package"
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return "scheme"
    if any(isinstance(one, OSError) and _is_here(one) for one in chain):
        return "here"
    if any(isinstance(one, PermissionError) for one in chain) or 401 in statuses or 403 in statuses:
        return "forbidden"
    if any(status in _OVERLOADED or status >= 500 for status in statuses):
        return "away"
    if statuses:
        return "missing" if 404 in statuses or 410 in statuses else "refused"
    if isinstance(chain[-1], FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return "missing"
    modules = [type(one).__module__.partition(".")[0] for one in chain]
    network = ("aiohttp", "httpx", "httpx2", "httpcore", "requests", "botocore", "aiobotocore", "urllib3")
    if any(isinstance(one, TimeoutError | ConnectionError) for one in chain):
        return "away"
    return "away" if any(one in network for one in modules) else "other"


def _is_here(error: OSError) -> bool:
    """Whether it is this machine that a copy can't be written on."""
    return error.errno in _FULL or str(error.filename or "").startswith(str(cache_folder()))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; fsspec calls whatever happens to a URL a file that isn't found."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The answer's status, where a server answered."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # aiohttp says of an answer that is cut off, too, that its code is 400.
    names = ("status", "status_code", *(() if type(error).__module__.startswith("aiohttp") else ("code",)))
    found = (getattr(holder, name, None) for holder in (error, answer) for name in names)
    return next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)


def _reason(error: BaseException) -> str:
    """The innermost cause that says anything, on one line."""
    said = [" ".join(str(one).split()) for one in _chain(error)]
    text = next((text for text in reversed(said) if text), type(error).__name__)
    return text.rstrip(".") if len(text) <= 200 else f"{text[:200]}..."
