"""A run's model as a function of flat tensors, and its trace."""

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mope.errors import UserError
from mope.model import FusionModel
from mope.tasks import Regression

Batch = dict[str, dict[str, Tensor]]


class Graph(nn.Module):
    """A model as a function of flat tensors: `<input>_<argument>` -> outputs by name.

    Args:
        model: in eval mode.
        batch: any batch, for names and shapes; what is in it leaves no trace.
    """

    def __init__(self, model: FusionModel, batch: Batch):
        super().__init__()
        self.model = model.eval()
        self.names = {
            f"{name}_{argument}": (name, argument) for name, inputs in batch.items() for argument in inputs
        }
        self.axes = {
            f"{name}_{argument}": _axes(model.settings.inputs[name].kind, name, tensor, inputs)
            for name, inputs in batch.items()
            for argument, tensor in inputs.items()
        }
        self.example = {name: _example(tensor, self.axes[name]) for name, tensor in self.flat(batch).items()}
        self.forward = self._named()
        with torch.inference_mode():
            self.outputs = list(self.run(self.flat(batch)))

    def flat(self, batch: Batch) -> dict[str, Tensor]:
        """A batch as `run` takes it."""
        return {flat: batch[name][argument] for flat, (name, argument) in self.names.items()}

    def _named(self) -> Callable[..., dict[str, Tensor]]:
        """`run` with a parameter for each tensor, by which a torch.export file is called."""

        def forward(**tensors: Tensor) -> dict[str, Tensor]:
            return self.run(tensors)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in self.names]
        )
        return forward

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of a batch: `logits` (B, C) or (B, H, W), and what the task makes of them.

        `probabilities` (B, C) where there are classes; `values` (B,) of a regression, in the
        label's own units.
        """
        batch: Batch = {}
        for flat, (name, argument) in self.names.items():
            batch.setdefault(name, {})[argument] = tensors[flat]
        task = self.model.task
        logits = self.model(**batch).logits
        if isinstance(task, Regression):
            return {"logits": logits, "values": task.predictions(logits)}
        if task.dense:
            return {"logits": logits}
        return {"logits": logits, "probabilities": task.probabilities(logits)}

    def trace(self) -> torch.export.ExportedProgram:
        """The forward pass as a graph, over batches and texts of any size.

        Model code must ask a tensor's `shape[0]`, not its `len`: Python makes a number of whatever that
        returns, and the graph would take batches of this number alone.

        Raises:
            UserError: it can't be traced.
        """
        shapes = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in self.axes.items()}
        try:
            with torch.no_grad():
                return torch.export.export(self, (), self.example, dynamic_shapes=shapes, strict=False)
        except UserError:
            raise
        except Exception as error:  # whatever the tracing of a user's encoders comes upon
            raise UserError(refusal(self.model, error)) from error


def _axes(kind: str, name: str, tensor: Tensor, inputs: Mapping[str, Tensor]) -> dict[int, str]:
    """Names of a tensor's axes whose length is free.

    Pictures and videos have the size that the run's config says. Sound that comes without a mask is always
    filled up to one length, and spectrograms are.
    """
    free = kind == "text" or (kind == "audio" and "attention_mask" in inputs)
    return {0: "batch", 1: f"{name}_length"} if free and tensor.ndim == 2 else {0: "batch"}


def _example(tensor: Tensor, axes: Mapping[int, str]) -> Tensor:
    """Zeros of a tensor's shape, to trace with: a torch.export file holds what it was traced with."""
    # A batch of one would be traced as one for ever, and so would be a text of one token.
    shape = [max(n, 2) if axis in axes else n for axis, n in enumerate(tensor.shape)]
    shape[0] = 2
    return tensor.new_zeros(shape)


def refusal(model: FusionModel, error: Exception) -> str:
    """What to say of an error of the exporter."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return f"This run (fusion.method {model.settings.fusion.method}) can't be exported: {reason}"
