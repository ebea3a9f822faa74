"""Whether the experts of a training are used, and what to do where they aren't."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mope.config import Config, GuidedConfig
from mope.prompts import variation

_MANY = 0.25  # of the layers: what holds in fewer isn't said; a mean over all would hide what holds in some

_CLUSTERED = {"keys": "clusters", "standardise": True, "similarity": "cosine"}
"""How routers begin with experts that see different rows, see `mope.prompts.Router`."""


def effective_experts(importance: Tensor) -> Tensor:
    """How many experts each layer uses: the exponential of the entropy of its importance, (L, k) -> (L,).

    It is k where all are used alike, and 1 where one takes everything.
    """
    shares = importance / importance.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).exp()


@dataclass(frozen=True)
class Use:
    """How the experts of each layer are used by validation rows: without noise and dropped experts.

    Attributes:
        experts: k.
        used: effective number of experts, from 1 to k, by layer.
        uneven: imbalance (Eq. 6), 0 where all are used alike, by layer.
        threshold: the imbalance above which the importance loss acts; None for a fusion that has none.
    """

    experts: int
    used: Sequence[float]
    uneven: Sequence[float]
    threshold: float | None = None

    @classmethod
    def of(cls, importance: Tensor, config: Config) -> "Use":
        """Of the importance (L, k) that rows gave experts."""
        experts = importance.shape[1]
        # Rows that choose one expert each at random are that uneven; a batch of few rows always is, which is
        # why it isn't asked.
        chance = (experts - 1) / importance.sum(dim=1)
        uneven = (variation(importance) - chance).clamp(min=0)
        return cls(experts, effective_experts(importance).tolist(), uneven.tolist(), _threshold(config))

    @classmethod
    def read(cls, entry: Mapping[str, Any], config: Config) -> "Use | None":
        """What `logged` left in an epoch's entry; None without experts, and of an earlier version's."""
        if "used" not in entry or "uneven" not in entry:
            return None
        return cls(entry["experts"], entry["used"], entry["uneven"], _threshold(config))

    def logged(self) -> dict[str, Any]:
        """What an epoch's entry keeps of each layer."""
        return {"used": list(self.used), "uneven": list(self.uneven)}

    @property
    def mean(self) -> float:
        """Effective number of experts, the mean of all layers."""
        return sum(self.used) / len(self.used)

    @property
    def few(self) -> int:
        """In how many layers fewer than half of the experts are used; 0 where that is hardly any."""
        return self._enough(sum(one < self.experts / 2 for one in self.used))

    @property
    def unbalanced(self) -> int:
        """In how many layers the imbalance is above the threshold; 0 where that is hardly any."""
        if self.threshold is None:
            return 0
        return self._enough(sum(one > self.threshold for one in self.uneven))

    def _enough(self, layers: int) -> int:
        return layers if layers >= _MANY * len(self.used) else 0

    def in_short(self) -> str:
        """What an epoch's line says of it."""
        layers = len(self.used)
        counts = {"few": self.few, "uneven": self.unbalanced}
        said = ", ".join(f"{word} in {count} of {layers} layers" for word, count in counts.items() if count)
        return f"experts used {self.mean:.2f} of {self.experts}{f' ({said})' if said else ''}"


def collapse(history: Sequence[Mapping[str, Any]], best: int | None, config: Config) -> str | None:
    """What to know and to do, if many experts were trained for nothing, whatever the metric says; else None.

    Args:
        history: an entry per epoch.
        best: step of the epoch that is kept.
        config: the training's settings, by which it is advised.
    """
    kept = next((entry for entry in history if entry["step"] == best), history[-1]) if history else {}
    use = Use.read(kept, config)
    if use is None or not (use.few or use.unbalanced):
        return None
    layers, found = len(use.used), []
    if use.few:
        found.append(
            f"Few of the experts are used: in {use.few} of {layers} layers fewer than half of {use.experts} "
            f"({use.mean:.1f} on average over all layers)."
        )
    if use.unbalanced:
        found.append(
            f"Experts are used unevenly: in {use.unbalanced} of {layers} layers the imbalance is above "
            f"fusion.importance_threshold, {use.threshold:g} (0 is even use; {max(use.uneven):.2g} at most)."
        )
    if kept is not history[-1]:
        found.append(f"This is of epoch {kept['epoch']:.3g}, whose weights are kept.")
    if advised := _advice(config, use, kept is history[-1]):
        found.append(f"What may help: {'; '.join(advised)}.")
    has_test_rows = config.data.test is not None or config.data.split_column is not None
    table = "" if has_test_rows else " --data TABLE"
    found.append(
        f"`mope explain {config.output}{table}` says whether its answers depend on them; a run with "
        "--fusion.experts 1, one prompt for all rows, is one to compare with."
    )
    return " ".join(found)


def _advice(config: Config, use: Use, still_better: bool) -> list[str]:
    """What would change something for a run with these settings.

    Args:
        config: the settings.
        use: of the experts.
        still_better: whether the last epoch was the best.
    """
    fusion, found = config.fusion, []
    if not isinstance(fusion, GuidedConfig):
        return []
    other = [
        f"--fusion.{name} {str(value).lower()}"
        for name, value in _CLUSTERED.items()
        if getattr(fusion, name) != value
    ]
    if other:
        found.append(f"{' '.join(other)}, so that experts begin with different rows")
    if fusion.top is not None and fusion.top < fusion.experts:
        found.append("--fusion.top null, which mixes all experts")
    if fusion.tau < 1:
        found.append(f"a higher --fusion.temperature (it is {fusion.tau:g})")
    if fusion.importance_weight and max(use.uneven) <= fusion.importance_threshold:
        # There the loss is zero but for what batches of few rows are uneven by chance, whatever its weight.
        found.append(f"a smaller --fusion.importance_threshold (it is {fusion.importance_threshold:g})")
    elif fusion.importance_weight < 1:
        found.append(f"a larger --fusion.importance_weight (it is {fusion.importance_weight:g})")
    if fusion.experts > 2:
        found.append(f"fewer --fusion.experts (they are {fusion.experts})")
    if still_better:
        found.append(
            "more epochs, for the last one was the best"
            if config.training.minutes is None
            else "more minutes, for the last epoch was the best"
        )
    return found


def _threshold(config: Config) -> float | None:
    return config.fusion.importance_threshold if isinstance(config.fusion, GuidedConfig) else None
