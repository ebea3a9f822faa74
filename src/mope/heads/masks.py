"""The mask head: UperNet over four feature maps of the main encoder."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

from mope.prompts.norm import share_statistics


class MaskHead(nn.Module):
    """UperNet (Xiao et al. 2018) as transformers has it: four maps to one logit per pixel.

    The maps of a Swin's stages have strides of their own. Those of a plain transformer all have its patches'
    stride; they are rescaled to a pyramid by 4, 2, 1 and 1/2 as ViTDet does (Li et al. 2022, section 3), with
    its widths. Each map is normed over its channels first, as transformers' Swin backbone does.

    Args:
        dims: width of each of the four maps.
        channels: width inside the head; 512 in the paper's setting.
        plain: whether the maps are a plain transformer's.
    """

    def __init__(self, dims: Sequence[int], channels: int = 512, plain: bool = False):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.pyramid = nn.ModuleList(
            _rescale(dim, level) if plain else nn.Identity() for level, dim in enumerate(dims)
        )
        widths = [dim // (4, 2, 1, 1)[level] if plain else dim for level, dim in enumerate(dims)]
        config = UperNetConfig(hidden_size=channels)
        config.num_labels = 1
        self.upernet = UperNetHead(config, widths)
        share_statistics(self.upernet)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, *size) from maps (B, C_s, H_s, W_s)."""
        levels = []
        for norm, rescale, found in zip(self.norms, self.pyramid, maps, strict=True):
            normed = norm(found.movedim(1, -1)).movedim(-1, 1)
            levels.append(rescale(normed))
        logits = self.upernet(levels)
        return functional.interpolate(logits.float(), size=size, mode="bilinear")[:, 0]


def _rescale(dim: int, level: int) -> nn.Module:
    """One level of ViTDet's pyramid."""
    if level == 0:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
            nn.GroupNorm(1, dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
        )
    if level == 1:
        return nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)
    return nn.Identity() if level == 2 else nn.MaxPool2d(2)
