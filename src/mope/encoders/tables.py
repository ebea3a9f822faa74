"""Numbers, categories and dates as one input: an FT-Transformer, trained from the start."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mope.config import FieldConfig
from mope.encoders.base import Encoder, EncoderOutput
from mope.errors import UserError
from mope.prompts import PromptSource

WIDTH, BLOCKS = 64, 2
"""Width and number of blocks, unless `architecture` says otherwise: small beside what it guides."""

_HEADS = 8
_CYCLE = [-1.0, 1.0]  # a sine or cosine needs no bins within
DATE_NUMBERS = 7
"""Numbers that a date becomes: when, and where in the year, the week and the day, by sine and cosine."""


class TableEncoder(Encoder):
    """Columns of a table as tokens of an FT-Transformer (Gorishniy et al. 2021, arXiv 2106.11959).

    Numbers get piecewise-linear embeddings (Gorishniy et al. 2022, arXiv 2203.05556, as in TabM's version),
    categories learned ones; both by the authors' packages. A missing number has an embedding of its own, a
    missing category is one, and so is one that training rows don't have.

    Args:
        columns: what each column holds, all of it found.
        width: of a token, a multiple of 8; also D of the global feature.
        blocks: number of blocks.

    Raises:
        UserError: the packages aren't installed, or a setting is wrong.
    """

    kind = "table"
    reentrant = True

    def __init__(self, columns: Mapping[str, FieldConfig], width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        try:
            from rtdl_num_embeddings import PiecewiseLinearEmbeddings
            from rtdl_revisiting_models import CategoricalEmbeddings

            from mope.encoders.fttransformer import Backbone
        except ImportError:
            raise UserError(
                "A table input needs the extra 'tabular': pip install rtdl_num_embeddings "
                "rtdl_revisiting_models."
            ) from None
        if width % _HEADS or blocks < 1:
            raise UserError(f"A table's width is a multiple of {_HEADS}, and it has at least one block.")
        self.layer_dims, self.pooled_dim = [], width
        bins = [torch.tensor(edges) for field in columns.values() for edges in _edges(field)]
        counts = [2 + len(field.values or []) for field in columns.values() if field.kind == "category"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a cycle has one bin
            self.numbers = (
                PiecewiseLinearEmbeddings(bins, width, activation=False, version="B") if bins else None
            )
        self.absent = nn.Parameter(torch.empty(len(bins), width).uniform_(-1, 1) / width**0.5)
        self.categories = CategoricalEmbeddings(counts, width) if counts else None
        self.first = nn.Parameter(torch.empty(width).uniform_(-1, 1) / width**0.5)
        self.backbone = Backbone(
            d_out=None,
            n_blocks=blocks,
            d_block=width,
            attention_n_heads=_HEADS,
            attention_dropout=0.1,
            ffn_d_hidden_multiplier=4 / 3,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, prompts: PromptSource | None = None, **inputs: Any) -> EncoderOutput:
        """Encode a batch.

        Args:
            prompts: none are taken.
            inputs: `numbers` (B, n), NaN where one is missing; `categories` (B, m), int64, 0 for a missing
                one, 1 for one that isn't known.
        """
        if prompts is not None:
            raise UserError("A table's encoder takes no prompts: make another input the main one.")
        numbers, categories = inputs["numbers"], inputs["categories"]
        tokens = [self.first.expand(numbers.shape[0], 1, -1)]
        if self.numbers is not None:
            missing = numbers.isnan()
            found = self.numbers(torch.where(missing, torch.zeros_like(numbers), numbers))
            tokens.append(torch.where(missing.unsqueeze(-1), self.absent.to(found.dtype), found))
        if self.categories is not None:
            tokens.append(self.categories(categories))
        pooled = self.norm(self.backbone(torch.cat(tokens, dim=1)))
        return EncoderOutput(pooled, pooled.unsqueeze(1))


def _edges(field: FieldConfig) -> list[list[float]]:
    """Bins of each number that a column becomes."""
    if field.kind == "category":
        return []
    return [field.edges, *([_CYCLE] * (DATE_NUMBERS - 1) if field.kind == "date" else [])]


def table_encoder(columns: Mapping[str, FieldConfig], architecture: Mapping[str, Any] | None) -> TableEncoder:
    """The encoder of a table input's columns, by its settings.

    Raises:
        UserError: a setting is unknown.
    """
    unknown = [name for name, field in columns.items() if not field.values and not field.edges]
    if unknown:
        raise UserError(
            f"What the column '{unknown[0]}' holds isn't known: name training rows, in which it is found."
        )
    settings = {"width": WIDTH, "blocks": BLOCKS, **(architecture or {})}
    if unknown := sorted(set(settings) - {"width", "blocks"}):
        raise UserError(f"A table's architecture has no '{unknown[0]}': it has width and blocks.")
    return TableEncoder(columns, **settings)
