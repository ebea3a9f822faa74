"""Files of trained weights, which carry a digest of what is in them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mope.errors import UserError

_DIGEST = "sha256"


def write_weights(file: Path, state: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors.

    Args:
        file: where to.
        state: tensors by name; they may share memory, or lie in it anyhow.

    Returns:
        Their digest, which the file has as well.
    """
    dense = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    digest = _digest(dense)
    save_file(dense, file, metadata={"format": "pt", _DIGEST: digest})
    return digest


def read_weights(file: Path, wanted: str | None = None) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    Args:
        file: where they are.
        wanted: their digest, where it is known from elsewhere.

    Raises:
        UserError: it can't be read, or isn't what was written or is wanted. A file of an earlier version has
            no digest.
    """
    try:
        with safe_open(file, "pt") as content:
            expected = (content.metadata() or {}).get(_DIGEST, wanted)
            names = content.keys()
            state = {name: content.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read ({error}): copy the run anew.") from None
    if expected is not None and _digest(state) != expected:
        raise UserError(f"{file} is damaged, its weights aren't those that were written: copy the run anew.")
    if wanted is not None and wanted != expected:
        raise UserError(
            f"{file} isn't what the config.yaml beside it was written with: copy the run anew, both files."
        )
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
