"""FSDP: the weights of encoders tuned in full, their gradients and moments shared out among processes.

Torch's `fully_shard` does it layer by layer. What else is trained is small and stays whole in each process,
under DDP, which is told to leave out what is shared out. Both take the mean of gradients over processes.
Checkpoints hold whole tensors, as without: any number of processes goes on from them.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.torch_version import TorchVersion

from mope.config import Config
from mope.errors import UserError
from mope.model import FusionModel, needed_inputs

_TORCH = "2.7"  # the first whose `fully_shard` can leave parameters out


def check_sharding(config: Config) -> None:
    """Make sure that a training can share out weights, if it is to.

    Raises:
        UserError: it can't, or accelerate is to do it.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes"):
        raise UserError(
            "accelerate's own FSDP can't be used: leave it out of accelerate's settings and set "
            "training.fsdp to true."
        )
    training = config.training
    if not training.fsdp:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UserError(
            "training.fsdp shares weights out among several processes, and there is one: start more by "
            "torchrun, or set it to false."
        )
    if TorchVersion(torch.__version__) < _TORCH:
        raise UserError(f"training.fsdp needs torch {_TORCH} or later; this is {torch.__version__}.")
    if training.compile:
        raise UserError("training.fsdp doesn't go with training.compile: set one of them to false.")
    if training.precision == "fp16":
        raise UserError("training.fsdp doesn't go with fp16: set training.precision to bf16 or fp32.")
    if training.solver == "lbfgs" or not any(map(_is_shared_out, needed_inputs(config).values())):
        raise UserError(
            "training.fsdp shares out encoders that are tuned in full, and none is: set it to false, or an "
            "encoder's tuning to full."
        )
    if config.fusion.method == "pmf":
        raise UserError("training.fsdp doesn't go with PMF, which runs an encoder's layers out of turn.")


def _is_shared_out(entry: Any) -> bool:
    """Whether an input's encoder is; a table's is small."""
    return entry.encoder.tuning == "full" and entry.kind != "table"


def shard(model: FusionModel, device: torch.device) -> None:
    """Leave each process its part of the weights of encoders tuned in full.

    Every process calls it, with the same weights, before there is an optimizer.

    Args:
        model: as `check_sharding` wants it.
        device: where it is.
    """
    from torch.distributed.fsdp import fully_shard

    # It warns of changing an encoder's output in place, which nothing does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    for name, entry in model.settings.inputs.items():
        if name in model.fusion.encoders and _is_shared_out(entry):
            encoder = model.fusion.encoder(name).encoder
            # What nothing reads isn't trained, and may be of another type than what is.
            frozen = {parameter for parameter in encoder.parameters() if not parameter.requires_grad}
            for unit in encoder.units():
                fully_shard(unit, mesh=mesh, ignored_params=frozen)
    own = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    # Of all that is public, nothing else lets DDP leave parameters out.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)


def share_out(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors as a model's state has them by name: of what is shared out, the parts."""
    like = model.state_dict()
    return {name: _as(like.get(name), tensor) for name, tensor in state.items()}


def whole_state(model: FusionModel) -> dict[str, Tensor]:
    """What was trained, see `FusionModel.trained_state`, in whole tensors.

    Every process calls it; what is shared out is in the first one's alone.
    """
    return {name: _whole(tensor) for name, tensor in model.trained_state().items()}


def keep_whole(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer give whole tensors as its state, and take such; every process asks it for them."""

    def give(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        moments = {
            number: {name: _whole(value) for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return {**state, "state": moments}

    def take(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                # Beside the moments there is the number of steps, which is whole.
                name: _as(parameters[number] if value.ndim else None, value)
                for name, value in entry.items()
            }
            for number, entry in state["state"].items()
        }
        return {**state, "state": moments}

    optimizer.register_state_dict_post_hook(give)
    optimizer.register_load_state_dict_pre_hook(take)


def _whole(tensor: Any) -> Any:
    """A tensor of all processes' parts, in the first one's main memory; nothing in the others."""
    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor()
    return found.cpu() if PartialState().is_main_process else found.new_empty(0)


def _as(like: Any, tensor: Tensor) -> Tensor:
    """A whole tensor, or its part where another one is shared out."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
