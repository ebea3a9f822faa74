"""Keys and values of prompts that are the same for every row, projected once instead of in every pass."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mope.graphs import keep_for_graph
from mope.prompts.source import Projected


class Projects(Protocol):
    """An encoder, as far as it projects prompts."""

    def project_prompts(self, layer: int, prompts: Tensor) -> Projected | None:
        """Keys and values that a layer makes of prompts (1, P, d_i); None where it doesn't take them so."""
        ...

    def projecting(self, layer: int) -> Iterable[tuple[Mapping[str, nn.Module | None], str]]:
        """The modules whose weights these depend on: what holds each, and its name there."""
        ...


class _Weight(NamedTuple):
    """A tensor that keys and values depend on, and how it was when they were made.

    Attributes:
        holder: what holds it, by `name`.
        tensor: itself.
        version: counts its changes in place.
        address: of its memory, which another device or dtype changes.
    """

    holder: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int
    address: int


class _Entry(NamedTuple):
    """What is kept of a layer.

    Attributes:
        by_dtype: keys and values by the dtype of the prompts they were made of.
        weights: what they depend on.
        modules: that projected, behind what holds each, and its name there.
    """

    by_dtype: dict[torch.dtype, Projected]
    weights: list[_Weight]
    modules: list[tuple[Mapping[str, nn.Module | None], str, nn.Module | None]]

    def is_current(self) -> bool:
        """Whether all weights are as they were; in few steps, since every layer asks in every pass."""
        for place, name, module in self.modules:
            if place.get(name) is not module:
                return False
        for holder, name, own, version, address in self.weights:
            if (
                holder.get(name) is not own
                or own._version != version
                or own.data_ptr() != address
                or own.requires_grad
            ):
                return False
        return True


class KeptPrompts(nn.Module):
    """Keys and values by layer, from `keep` on until something they depend on changes.

    They are dropped in training mode, when weights are loaded and when the module is moved; and not given any
    more as soon as a tensor they were made of is another, has changed in place, or is to learn. (An edit
    through `Tensor.data` is hidden from this, as it is from autograd; a compiled graph doesn't look.) They
    are given only under the autocast that they were made under, so that values are those of a pass without
    them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._autocast: torch.dtype | None = None
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        """Of how many layers something is kept."""
        return len(self._entries)

    @torch.no_grad()
    def keep(self, prompts: nn.ParameterList, encoder: Projects) -> None:
        """Project prompts once and for all, under the autocast in force, as far as nothing there learns.

        Args:
            prompts: of each layer, (P, d_i).
            encoder: whose layers they are for.
        """
        self.drop()
        if self.training:
            return
        self._autocast = _autocast(prompts[0]) if len(prompts) else None
        for layer, prompt in enumerate(prompts):
            modules = [(place, name, place[name]) for place, name in encoder.projecting(layer)]
            weights_of = _held_by(module for *_, module in modules if module is not None)
            held = [(prompts._parameters, str(layer), prompt), *weights_of]
            if any(one.requires_grad or one.is_inference() for *_, one in held):
                continue
            made = {}
            for dtype in {prompt.dtype, self._autocast or prompt.dtype}:
                if (found := encoder.project_prompts(layer, prompt.to(dtype).unsqueeze(0))) is not None:
                    made[dtype] = found
            if made:
                weights = [
                    _Weight(place, name, one, one._version, one.data_ptr()) for place, name, one in held
                ]
                self._entries[layer] = _Entry(made, weights, modules)

    def find(self, layer: int, x0: Tensor) -> Projected | None:
        """Keys and values (1, P, H * d) for a layer that global features x0 (B, d_i) enter; None for none."""
        entry = self._entries.get(layer)
        if entry is None or _autocast(x0) != self._autocast:
            return None
        if not torch.compiler.is_compiling() and not entry.is_current():
            return None
        return keep_for_graph(entry.by_dtype.get(x0.dtype))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """A while in which every prompt is projected in its pass."""
        entries, self._entries = self._entries, {}
        try:
            yield
        finally:
            self._entries = entries

    def drop(self) -> None:
        """Keep nothing any more."""
        self._entries = {}

    def train(self, mode: bool = True) -> "KeptPrompts":
        """Set the mode; in training nothing is kept."""
        if mode:
            self.drop()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "KeptPrompts":
        self.drop()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, of which nothing is kept."""
        return {**self.__dict__, "_entries": {}}


def _held_by(modules: Iterable[nn.Module]) -> Iterator[tuple[Mapping[str, Tensor | None], str, Tensor]]:
    """Each parameter and buffer within modules, behind what holds it and its name there."""
    for part in (inner for module in modules for inner in module.modules()):
        for holder in (part._parameters, part._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    yield holder, name, tensor


def _autocast(tensor: Tensor) -> torch.dtype | None:
    """What is cast to on a tensor's device at present; None without autocast."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
