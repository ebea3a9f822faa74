"""The FT-Transformer's backbone by its authors' package, with attention that can be exported.

Imported where it is needed: the package is in the extra `tabular`.
"""

from typing import Any

from rtdl_revisiting_models import FTTransformerBackbone, MultiheadAttention
from torch import Tensor
from torch.nn import functional


class _Attention(MultiheadAttention):
    """The package's attention by PyTorch's kernel; its own asks for a batch's `len`, which a graph keeps."""

    def forward(self, x_q: Tensor, x_kv: Tensor) -> Tensor:
        """Attend from tokens (B, N, D) to tokens (B, M, D)."""
        q, k, v = (
            found.unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
            for found in (self.W_q(x_q), self.W_k(x_kv), self.W_v(x_kv))
        )
        dropout = self.dropout.p if self.training and self.dropout is not None else 0.0
        found = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        found = found.transpose(1, 2).flatten(-2)
        return found if self.W_out is None else self.W_out(found)


class Backbone(FTTransformerBackbone):
    """The package's backbone, with the attention above; its settings are the package's."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for block in self.blocks:
            block["attention"].__class__ = _Attention  # type: ignore[index]
