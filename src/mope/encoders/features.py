"""Features of frozen, unprompted encoders, computed once and kept on disk."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mope.encoders.base import Encoder
from mope.files import open_store


class FeatureCache:
    """One encoder's features (B, D), by the content of its inputs.

    A row is known by what its encoder is given, padding left out, so that neither its file's name nor its
    batch matters; the cache itself by the encoder's weights, structure and arithmetic. One SQLite file per
    encoder: several processes may use it at once, and a killed one leaves it whole.

    Args:
        folder: where caches are kept.
        encoder: frozen; it must not change afterwards.
    """

    def __init__(self, folder: Path, encoder: Encoder):
        self.folder = folder
        self.weights = encoder.known_as or fingerprint(encoder)
        self._files: dict[str, sqlite3.Connection] = {}
        self.hits = self.misses = 0

    def __deepcopy__(self, memo: dict) -> "FeatureCache":
        return self

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    @torch.no_grad()
    def feature(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tensor:
        """The features of a batch, in float32; only rows that aren't known are computed."""
        device = next(iter(inputs.values())).device
        file = self._open(_arithmetic(device))
        keys = row_keys(inputs)
        marks = ",".join("?" * len(keys))
        found = dict(file.execute(f"SELECT key, feature FROM features WHERE key IN ({marks})", keys))
        new = [place for place, key in enumerate(keys) if key not in found]
        self.hits, self.misses = self.hits + len(keys) - len(new), self.misses + len(new)
        if new:
            rows = torch.tensor(new, device=device)
            made = encoder.feature(**{name: tensor[rows] for name, tensor in inputs.items()})
            made = made.float().cpu().contiguous()
            entries = [(keys[place], row.numpy().tobytes()) for place, row in zip(new, made, strict=True)]
            with file:
                file.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", entries)
            found.update(entries)
        rows = [torch.frombuffer(bytearray(found[key]), dtype=torch.float32) for key in keys]
        return torch.stack(rows).to(device)

    def _open(self, arithmetic: str) -> sqlite3.Connection:
        if arithmetic not in self._files:
            path = self.folder / f"{self.weights[:32]}-{arithmetic}.sqlite"
            file = open_store(path, "features (key BLOB PRIMARY KEY, feature BLOB)")
            self._files[arithmetic] = file
        return self._files[arithmetic]


Inputs = Mapping[str, Tensor]
"""A batch, as an encoder takes it."""


def with_known(known: dict[bytes, Tensor], inputs: Inputs, make: Callable[[Inputs], Tensor]) -> Tensor:
    """The features (B, D) of a batch, of which only rows are made that aren't known yet.

    A row is known by its content alone, so what makes features mustn't change, nor its arithmetic.

    Args:
        known: features (D,) by `row_keys`; takes the new ones.
        inputs: the batch.
        make: the features of some rows.
    """
    keys = row_keys(inputs)
    places = {key: place for place, key in enumerate(keys) if key not in known}
    if places:
        rows = torch.tensor(list(places.values()), device=next(iter(inputs.values())).device)
        made = make({name: tensor[rows] for name, tensor in inputs.items()})
        known.update(zip(places, made, strict=True))
    return torch.stack([known[key] for key in keys])


def _arithmetic(device: torch.device) -> str:
    """What features are computed in."""
    if not torch.is_autocast_enabled(device.type):
        return "float32"
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all that determines what a module gives: its parts, their settings and tensors.

    Parts that are trained are left out, with what is in them.
    """
    digest = hashlib.sha256()
    _add(digest, "", module)
    return digest.hexdigest()


def _add(digest: Any, path: str, module: nn.Module) -> None:
    own = dict(module.named_parameters(recurse=False))
    if any(parameter.requires_grad for parameter in own.values()):
        return
    config: Any = getattr(module, "config", None)
    described = _settings(config) if hasattr(config, "to_dict") else None
    digest.update(f"{path}|{type(module).__qualname__}|{module.extra_repr()}|{described}".encode())
    for name, value in sorted(vars(module).items()):
        if name not in _MODULE_STATE and _is_plain(value):
            digest.update(f"{name}={value!r}".encode())
    for name, tensor in sorted({**own, **dict(module.named_buffers(recurse=False))}.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    for name, part in module.named_children():
        _add(digest, f"{path}.{name}", part)


def _settings(config: Any) -> str:
    """A model's settings; where its weights were read from is none."""
    known = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(known, sort_keys=True, default=str)


_MODULE_STATE = frozenset({*vars(nn.Module()), "name_or_path", "commit", "known_as"})
"""What every module keeps of itself: its mode, hooks, and the like; and where its weights were read from."""


def _is_plain(value: Any) -> bool:
    """Whether a value's text says what it is."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or isinstance(value, str | int | float | bool)


def row_keys(inputs: Mapping[str, Tensor]) -> list[bytes]:
    """What each row of a batch is known by: a hash of its tensors, padding left out."""
    mask = inputs.get("attention_mask")
    keys = []
    for row in range(len(next(iter(inputs.values())))):
        digest = hashlib.blake2b(digest_size=20)
        for name, tensor in sorted(inputs.items()):
            values = tensor[row]
            if mask is not None and values.shape == mask[row].shape:
                values = values[mask[row].bool()]
            digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}".encode())
            digest.update(_bytes(values))
        keys.append(digest.digest())
    return keys


def _bytes(tensor: Tensor) -> Any:
    """A tensor's memory, for hashing."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
