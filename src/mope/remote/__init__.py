"""Files elsewhere, by URL: what there is of them, and copies on this machine. It knows nothing of rows."""

from mope.remote.failures import NotThere
from mope.remote.paths import RemotePath, fetch_all, fetch_one, is_url, look_anew, matching, path_of, rebased
from mope.remote.sizes import Bound

__all__ = [
    "Bound",
    "NotThere",
    "RemotePath",
    "fetch_all",
    "fetch_one",
    "is_url",
    "look_anew",
    "matching",
    "path_of",
    "rebased",
]
