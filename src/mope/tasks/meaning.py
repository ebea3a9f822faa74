"""What each task's metrics say, for whoever hasn't met them."""

from typing import NamedTuple

_F1 = "how well labels are found, without false alarms (F1)"
_PRECISION = "of the rows that are given a label, the share for which it is right"
_IOU = "overlap of a mask with the right one: what both cover, of all that either does"
_ORIGINAL = "at the pictures' own sizes"


class Meaning(NamedTuple):
    """What a metric says.

    Attributes:
        text: in words.
        best: the value that none is better than.
    """

    text: str
    best: int

    @property
    def greater_is_better(self) -> bool:
        """Whether more of it is better; what is best at 0 is an error."""
        return self.best > 0


MEANINGS: dict[str, dict[str, Meaning]] = {
    "classification": {
        "accuracy": Meaning("share of rows that are right", 1),
        "f1_macro": Meaning(f"{_F1}, each label counting alike", 1),
        "precision_macro": Meaning(f"{_PRECISION}, each label counting alike", 1),
        "precision_weighted": Meaning(f"{_PRECISION}, labels counting by their rows", 1),
        "calibration_error": Meaning("how far probabilities are from how often answers are right", 0),
    },
    "multilabel": {
        "f1_macro": Meaning(f"{_F1}, each label counting alike", 1),
        "f1_micro": Meaning(f"{_F1}, over all rows and labels together", 1),
        "accuracy": Meaning("share of right ones among all decisions, one for each row and label", 1),
    },
    "regression": {
        "rmse": Meaning("usual error in the label's own units, large ones counting more", 0),
        "mae": Meaning("mean error in the label's own units", 0),
        "r2": Meaning("how much of the labels' differences is told; always naming their mean has 0", 1),
    },
    "referring-segmentation": {
        "miou": Meaning(f"{_IOU}; mean of the rows", 1),
        "overall_iou": Meaning(f"{_IOU}; of all rows' pixels together, so that large things count more", 1),
        "precision_50": Meaning("share of rows whose overlap is above 50%", 1),
        "precision_70": Meaning("share of rows whose overlap is above 70%", 1),
        "precision_90": Meaning("share of rows whose overlap is above 90%", 1),
        "miou_original": Meaning(f"miou {_ORIGINAL}", 1),
        "overall_iou_original": Meaning(f"overall_iou {_ORIGINAL}", 1),
    },
}
"""By task, as the config names it, and metric."""
