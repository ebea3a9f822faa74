"""The paper's core: router (Eq. 3), experts (Eq. 4), importance (Eq. 5-6), mapper, Eq. 2.

Torch only, and scikit-learn for clusters.
"""

from mope.prompts.deep import DeepPrompts, prompt_bound
from mope.prompts.experts import Experts
from mope.prompts.fusion import BoundPrompts, FusionPrompts, Joining
from mope.prompts.importance import importance, importance_loss, variation
from mope.prompts.kept import KeptPrompts, Projects
from mope.prompts.mapper import Mapper
from mope.prompts.mixed import MixedPrompts, prompt_shape
from mope.prompts.offsets import Offsets, Start, make_offsets
from mope.prompts.router import Embedded, KeyInit, Router, Similarity
from mope.prompts.source import Projected, PromptFunction, PromptSource

__all__ = [
    "BoundPrompts",
    "DeepPrompts",
    "Embedded",
    "Experts",
    "FusionPrompts",
    "Joining",
    "KeptPrompts",
    "KeyInit",
    "Mapper",
    "MixedPrompts",
    "Offsets",
    "Projected",
    "Projects",
    "PromptFunction",
    "PromptSource",
    "Router",
    "Similarity",
    "Start",
    "importance",
    "importance_loss",
    "make_offsets",
    "prompt_bound",
    "prompt_shape",
    "variation",
]
