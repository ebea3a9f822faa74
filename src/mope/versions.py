"""Versions of packages, for what a run's files say of how it was made."""

from importlib.metadata import PackageNotFoundError, version

OURS = "mope-fusion"
"""What this library is called on PyPI."""


def installed(distribution: str = OURS) -> str:
    """Its version; "unknown" for what is imported from its sources without being installed.

    No run may fail for the want of it: it is written when all of the work is done.
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
