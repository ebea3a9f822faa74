"""Referring segmentation: which pixels of a picture a phrase means (section V-B, Tab. II)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mope.errors import UserError
from mope.media.masks import Mask, encode_mask, fit_masks, mask_size, open_mask
from mope.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

MaskLoss = Literal["cross-entropy", "bce-dice"]


class ReferringSegmentation(Task):
    """A mask per row, the size of the main input's picture: mean IoU.

    Logits are (B, H, W), one per pixel of the picture as the encoder sees it, above zero inside. Metrics are
    taken at that size; an evaluation has two of them at the pictures' own sizes, too: `miou_original` and
    `overall_iou_original`, of logits that are resized bilinearly, as predictions are. With one logit per
    pixel, cross-entropy over inside and outside is binary cross-entropy.

    Args:
        labels: name of the mask's column.
        loss: "cross-entropy", the mean over pixels; or "bce-dice", to which it adds one minus the Dice
            coefficient of the probabilities, so that small things count as much as large ones.
    """

    metric = "miou"
    evaluated = ("miou_original", "overall_iou_original")
    dense = True

    def __init__(self, labels: Sequence[str], loss: MaskLoss = "cross-entropy"):
        super().__init__(labels[:1])
        self.kind = loss

    @property
    def classes(self) -> list[str]:
        return []

    def encode(self, value: Any, folder: Path = Path()) -> Mask:
        return open_mask(value, folder)

    def peek(self, value: Any, folder: Path = Path()) -> tuple[int, int]:
        return mask_size(value, folder)

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).float()

    def fit(self, values: Iterable[Any], weights: str | Mapping[str, float]) -> None:
        if weights != "none":
            raise UserError("data.class_weights means nothing for a segmentation: leave it out.")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        loss = functional.binary_cross_entropy_with_logits(logits, targets)
        if self.kind == "bce-dice":
            loss = loss + dice_loss(logits, targets)
        return loss

    def metrics(self) -> "MetricCollection":
        from mope.tasks import measures

        return measures.of_masks()

    def condense(
        self, logits: Tensor, targets: Tensor, originals: Sequence[Mask] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pixels of each row instead of masks: of intersection and prediction (B, 2), of the target (B,).

        With `originals`, each mask at its picture's own size, both have as many columns more, of these sizes:
        (B, 4) and (B, 2).
        """
        inside, wanted = logits > 0, targets > 0.5
        both = (inside & wanted).flatten(1).sum(dim=1)
        found = torch.stack([both, inside.flatten(1).sum(dim=1)], dim=1)
        pixels = wanted.flatten(1).sum(dim=1)
        if originals is None:
            return found, pixels
        fitted = fit_masks(logits, [mask.shape for mask in originals])
        pairs = list(zip(fitted, originals, strict=True))
        own = torch.tensor([[int((guess & mask).sum()), int(guess.sum())] for guess, mask in pairs])
        sizes = torch.tensor([int(mask.sum()) for mask in originals])
        return torch.cat([found.cpu(), own], dim=1), torch.stack([pixels.cpu(), sizes], dim=1)

    def compared(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Pixels at the encoder's size, and at the pictures' own where these are known."""
        if targets.ndim == 1:
            return {"": (logits, targets)}
        return {"": (logits[:, :2], targets[:, 0]), "_original": (logits[:, 2:], targets[:, 1])}

    def predictions(self, logits: Tensor) -> Tensor:
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits), 0)

    def decide(self, logits: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Any]]:
        """COCO's run lengths of each mask, at the given sizes."""
        if sizes is None:
            sizes = [(logits.shape[1], logits.shape[2])] * len(logits)
        return [encode_mask(mask) for mask in fit_masks(logits, sizes)]


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of one minus the Dice coefficient of probabilities and masks, (B, H, W) each."""
    inside = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    both = (inside * targets).sum(dim=1)
    return (1 - (2 * both + 1) / (inside.sum(dim=1) + targets.sum(dim=1) + 1)).mean()
