"""Work on frozen weights that is the same in every pass, done once.

Under autocast a frozen weight is cast anew in every pass: PyTorch keeps casts of weights that learn, and only
within one autocast block. For a frozen encoder that is a tenth of its time. The values are the same.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CACHE = "_mope_once"
_NOTHING = object()


class Cache(dict[Any, Any]):
    """The last few results by key. A copy of the module that holds it starts with an empty one."""

    def keep(self, key: Any, make: Callable[[], Any], size: int = 2) -> Any:
        """The result for a key, made if it isn't there; then the oldest go, down to `size`.

        Safe with several threads: at worst two make the same result.
        """
        found = self.get(key, _NOTHING)
        if found is not _NOTHING:
            return found
        result = make()
        for old in list(self)[: max(0, len(self) + 1 - size)]:
            self.pop(old, None)
        self[key] = result
        return result

    def __deepcopy__(self, memo: Any) -> "Cache":
        return Cache()

    def __reduce__(self) -> Any:
        return Cache, ()


def cache_of(module: nn.Module) -> Cache:
    """The cache that a module carries."""
    found = module.__dict__.get(_CACHE)
    if found is None:
        found = module.__dict__[_CACHE] = Cache()
    return found


def version(*parameters: Tensor) -> tuple[Any, ...] | None:
    """Changes whenever one of the parameters does; None where one learns, so that nothing may be kept."""
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    if learns or torch.compiler.is_compiling():
        return None
    # A tensor made in inference mode can't be used in training.
    mode = torch.is_inference_mode_enabled()
    return (mode, *((p.data_ptr(), _counter(p), p.dtype) for p in parameters))


def _counter(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


def cast_once(model: nn.Module) -> None:
    """Let a model's linear layers keep the cast of their weights, as long as these are frozen."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_linear, module)


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    """`nn.Linear.forward`; under autocast with weights that are cast already."""
    device = input.device.type
    # As a module keeps them: this runs a hundred times in a pass, where `parameters()` would be felt.
    own, own_bias = self._parameters.get("weight"), self._parameters.get("bias")
    if own is None:  # something else makes the weight now, such as a parametrization
        return functional.linear(input, self.weight, self.bias)
    known = (own,) if own_bias is None else (own, own_bias)
    if not torch.is_autocast_enabled(device) or (now := version(*known)) is None:
        return functional.linear(input, own, own_bias)
    dtype = torch.get_autocast_dtype(device)

    def cast() -> tuple[Tensor, Tensor | None]:
        return own.to(dtype), None if own_bias is None else own_bias.to(dtype)

    # One only: a model that was tuned in full and is evaluated has new weights every time.
    weight, bias = cache_of(self).keep((now, dtype), cast, size=1)
    return functional.linear(input, weight, bias)
