"""Any module or function as an encoder: it gives a global feature and takes no prompts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mope.encoders.base import Encoder, EncoderOutput
from mope.encoders.families import Kind
from mope.errors import UserError
from mope.prompts import PromptSource

Output = str | int | Callable[[Any], Tensor] | None


class BlackBoxEncoder(Encoder):
    """Wrap what nobody can look into: a CNN, an ensemble, a function.

    It can guide the main encoder, be concatenated, or be tuned in full; it can't be prompted. Whether it's
    frozen is its `TunedEncoder`'s to say.

    Args:
        module: called with the inputs of its kind by keyword; an `nn.Module` is part of the model, another
            callable isn't saved with it.
        dim: width D of its feature.
        kind: what it encodes.
        output: where the feature (B, D) is in what the module returns: an attribute or key, an index, a
            function of it, or None where it is the result itself.
        argument: name of the one input that is handed over, by position; None for all, by keyword.
        projection: width of a linear projection of the feature, which is trained; None for none.

    Raises:
        UserError: in the forward pass, if the feature isn't (B, D).
    """

    def __init__(
        self,
        module: nn.Module | Callable[..., Any],
        *,
        dim: int,
        kind: Kind = "image",
        output: Output = None,
        argument: str | None = None,
        projection: int | None = None,
    ):
        super().__init__()
        self.module = module
        self.kind = kind
        self.layer_dims = []
        self.feature_dim = dim
        self.pooled_dim = projection or dim
        self.output = output
        self.argument = argument
        self.projection = nn.Linear(dim, projection) if projection else None

    def units(self) -> Iterator[nn.Module]:
        yield from (part for part in (self.module, self.projection) if isinstance(part, nn.Module))

    def feature(self, **inputs: Any) -> Tensor:
        if self.argument is None:
            result = self.module(**inputs)
        elif self.argument in inputs:
            result = self.module(inputs[self.argument])
        else:
            raise UserError(
                f"The black-box encoder has no input '{self.argument}': it is given {', '.join(inputs)}."
            )
        feature = _pick(result, self.output)
        rows = next(iter(inputs.values())).shape[0]
        shape = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        if shape != (rows, self.feature_dim):
            raise UserError(
                f"The black-box encoder gives {shape} where ({rows}, {self.feature_dim}) is expected: "
                "say with `output` where its feature is, and with `dim` how wide."
            )
        return feature

    def project(self, feature: Tensor) -> Tensor:
        return feature if self.projection is None else self.projection(feature)

    def forward(self, prompts: PromptSource | None = None, **inputs: Any) -> EncoderOutput:
        if prompts is not None:
            raise UserError("A black-box encoder takes no prompts: make another input the main one.")
        pooled = self.project(self.feature(**inputs))
        return EncoderOutput(pooled, pooled.unsqueeze(1))


def _pick(result: Any, output: Output) -> Any:
    """The feature in what a module returned."""
    if output is None:
        return result
    if callable(output):
        return output(result)
    if isinstance(output, str) and not isinstance(result, Mapping):
        found = getattr(result, output, None)
    else:
        try:
            found = result[output]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            found = None
    if found is None:
        raise UserError(f"The black-box encoder's result, a {type(result).__name__}, has no '{output}'.")
    # Convolutional networks keep two axes of length one.
    return found.flatten(1) if isinstance(found, Tensor) and found.ndim > 2 else found
