"""Other ways to train a little of an encoder: LoRA, BitFit, AdaptFormer (Tab. IX)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mope.encoders.families import follow
from mope.encoders.transformer import TransformerEncoder
from mope.errors import UserError

LORA_RANK = 8
ADAPTER_WIDTH = 64


def add_lora(encoder: TransformerEncoder, rank: int = LORA_RANK) -> None:
    """Low-rank updates of the query, key and value projections of every layer (Hu et al. 2021), by peft.

    Tab. IX says r = 8 and not where: with these three in both encoders its 2.1 M come out. The update is
    scaled by alpha / r = 2, and starts at zero.

    Raises:
        UserError: peft isn't installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(
            "Tuning by LoRA takes the package peft: pip install 'mope-fusion[studies]'."
        ) from None
    family = encoder.family
    paths = [path for path, _ in _named_layers(encoder)]
    names = {family.query, family.key, family.value}
    targets = [f"{path}.{family.attention}.{name}" for path in paths for name in sorted(names)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, bias="none")
    trained = {name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    inject_adapter_in_model(config, encoder.backbone)
    for name, parameter in encoder.backbone.named_parameters():
        # peft freezes all that isn't its own.
        parameter.requires_grad_("lora_" in name or name in trained)


def train_biases(encoder: nn.Module) -> None:
    """Train every bias, and nothing else (BitFit, Ben Zaken et al. 2021)."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


class Adapter(nn.Module):
    """AdaptFormer's branch (Chen et al. 2022, Eq. 4): `s * ReLU(x W_down) W_up`, which starts at zero.

    Args:
        dim: width of the tokens.
        bottleneck: width between the projections.
        scale: s.
    """

    def __init__(self, dim: int, bottleneck: int = ADAPTER_WIDTH, scale: float = 0.1):
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Add to a layer's tokens, (B, N, d)."""
        return self.scale * self.up(functional.relu(self.down(x)))


def add_adapters(encoder: TransformerEncoder, bottleneck: int = ADAPTER_WIDTH) -> None:
    """A branch beside the MLP of every layer, which sees what the MLP sees (AdaptFormer).

    Where a layer scales what its MLP gives (DINOv2's LayerScale), the branch is scaled with it.

    Raises:
        UserError: the family keeps no module around its MLP.
    """
    family = encoder.family
    if family.mlp is None:
        name = encoder.backbone.config.model_type
        raise UserError(f"Models of type '{name}' take no adapters: their layers have no module for the MLP.")
    for (_, layer), dim in zip(_named_layers(encoder), encoder.layer_dims, strict=True):
        mlp: Any = layer.get_submodule(family.mlp)
        mlp.adapter = Adapter(dim, bottleneck).to(next(layer.parameters()).device)
        if family.mlp_adds:
            mlp.register_forward_pre_hook(_add_to_residual)
        else:
            mlp.register_forward_hook(_add_to_output)


def _add_to_output(mlp: Any, args: tuple, output: Tensor) -> Tensor:
    return output + mlp.adapter(args[0]).to(output.dtype)


def _add_to_residual(mlp: Any, args: tuple) -> tuple[Tensor, Tensor]:
    """BERT's output module is given what the MLP saw, to add to: the branch is added to that."""
    hidden, seen = args
    return hidden, seen + mlp.adapter(seen).to(seen.dtype)


def _named_layers(encoder: TransformerEncoder) -> list[tuple[str, nn.Module]]:
    """The layers with their paths, in order."""
    paths = {id(module): path for path, module in encoder.backbone.named_modules()}
    return [(paths[id(layer)], layer) for layer in follow(encoder.backbone, encoder.family.layers)]
