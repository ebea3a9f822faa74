"""A tar of files, for the tests of shards and streams."""

import io
import tarfile
from pathlib import Path


def write_tar(file: Path, members: dict[str, bytes | str | None]) -> Path:
    """A tar of files by name; None for a link to somewhere else."""
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
                continue
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file
