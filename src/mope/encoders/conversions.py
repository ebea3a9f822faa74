"""Published weights that aren't laid out as transformers lays models out, and what lays them out so."""

import json
from pathlib import Path

import torch
from torch import Tensor

from mope.errors import UserError


def convert_dinov2_small(file: Path, folder: Path) -> None:
    """Read the DINOv2-small inside an ONNX file into a Hugging Face folder.

    Biases and norms carry their names; the weights of linear layers are anonymous and transposed, and the
    MatMul node that takes one says whose it is. The position table is split into [CLS] row and patch rows.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(
            "Reading package:dinov2-small takes the package onnx: pip install 'mope-fusion[demo]'."
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


def convert_efficientnet_lite0(file: Path, folder: Path) -> None:
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
        raise UserError("This encoder takes the package timm: pip install 'mope-fusion[timm]'.") from None
    with torch.device("meta"):
        return list(timm.create_model(architecture).state_dict())


def convert_panns(file: Path, folder: Path) -> None:
    """Lay a published CNN14 checkpoint (PANNs) out as a transformers model.

    Raises:
        UserError: the file is something else.
    """
    from safetensors.torch import save_file

    from mope.encoders.cnn14 import Cnn14Model, wave_extractor

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
    wave_extractor().save_pretrained(folder)
