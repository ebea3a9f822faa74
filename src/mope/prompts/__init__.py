"""The paper's core: router (Eq. 3), experts (Eq. 4), importance (Eq. 5-6), mapper, Eq. 2. Torch only."""

from mope.prompts.deep import DeepPrompts, prompt_bound
from mope.prompts.experts import Experts
from mope.prompts.fusion import BoundPrompts, FusionPrompts
from mope.prompts.importance import importance, importance_loss, variation
from mope.prompts.mapper import Mapper
from mope.prompts.router import Router
from mope.prompts.source import PromptFunction, PromptSource

__all__ = [
    "BoundPrompts",
    "DeepPrompts",
    "Experts",
    "FusionPrompts",
    "Mapper",
    "PromptFunction",
    "PromptSource",
    "Router",
    "importance",
    "importance_loss",
    "prompt_bound",
    "variation",
]
