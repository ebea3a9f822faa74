"""One copy of frozen encoders in a process, whichever models use them."""

import threading
from collections.abc import Hashable
from typing import Any
from weakref import WeakValueDictionary

import torch

from mope.config import InputConfig
from mope.encoders.base import Encoder
from mope.encoders.features import fingerprint
from mope.encoders.inputs import load_input_encoder
from mope.encoders.sources import state_of


def own_because(entry: InputConfig) -> str | None:
    """What of an input's encoder is a run's own; None where it is frozen, with prompts or without."""
    settings = entry.encoder
    if entry.kind == "table":
        return "a table has an encoder of its own"
    if settings.weights is None:
        return "no pre-trained weights"
    if settings.tuning not in ("frozen", "prompt"):
        return f"tuning: {settings.tuning}"
    return None if settings.projection is None else "a projection that is trained"


class EncoderPool:
    """Gives models that only predict the encoders that others have loaded already.

    Two are the same if they give the same: the same parts, settings and weights (`fingerprint`), on the same
    device and frozen for the same arithmetic, wherever their weights were read from. A pool holds no encoder
    itself: the last model that is dropped drops it.

    What it gives must not be changed, moved or trained.
    """

    def __init__(self) -> None:
        self._lock, self._turns = threading.Lock(), WeakValueDictionary[Hashable, Any]()
        self._by_name: WeakValueDictionary[Hashable, Encoder] = WeakValueDictionary()
        self._by_weights: WeakValueDictionary[Hashable, Encoder] = WeakValueDictionary()

    def get(self, entry: InputConfig, device: torch.device, dtype: torch.dtype | None) -> Encoder:
        """An input's encoder, on a device, frozen for passes under autocast to `dtype`, in eval mode.

        One that is a run's own, see `own_because`, is loaded as usual, and is nobody else's.

        Raises:
            UserError: it can't be loaded.
        """
        if own_because(entry) is not None:
            return load_input_encoder(entry)
        where = (device, dtype)
        name = (_source(entry), where)
        with self._lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:  # of this one alone: a hub may take its time
            with self._lock:
                if (known := self._by_name.get(name)) is not None:
                    return known
            encoder = load_input_encoder(entry).requires_grad_(False).eval()
            known_as = fingerprint(encoder)
            weights = (known_as, where)
            with self._lock:
                if (known := self._by_weights.get(weights)) is None:
                    encoder.to(device).freeze(dtype)
                    encoder.known_as = known_as
                    self._by_weights[weights] = known = encoder
                self._by_name[name] = known
                return known


SHARED = EncoderPool()
"""The process's own."""


def _source(entry: InputConfig) -> Hashable:
    """What an encoder is loaded from: whatever bears on it, and the state of its files."""
    settings = entry.encoder
    assert settings.weights is not None
    architecture = repr(sorted((settings.architecture or {}).items()))
    return state_of(settings.weights), settings.revision, architecture, settings.pooling, entry.kind
