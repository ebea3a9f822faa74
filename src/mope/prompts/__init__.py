"""The paper's core: router (Eq. 3), experts (Eq. 4), importance (Eq. 5-6), mapper, Eq. 2. Torch only."""

from mope.prompts.experts import Experts
from mope.prompts.importance import importance, importance_loss, variation
from mope.prompts.mapper import Mapper
from mope.prompts.router import Router
from mope.prompts.source import (
    BoundPrompts,
    CarryingSource,
    DeepPrompts,
    FusionPrompts,
    PromptSource,
    prompt_bound,
)

__all__ = [
    "BoundPrompts",
    "CarryingSource",
    "DeepPrompts",
    "Experts",
    "FusionPrompts",
    "Mapper",
    "PromptSource",
    "Router",
    "importance",
    "importance_loss",
    "prompt_bound",
    "variation",
]
