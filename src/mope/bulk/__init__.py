"""Any number of rows: predictions in parts, so that an interrupted file goes on, and metrics."""

from mope.bulk.evaluate import evaluate
from mope.bulk.run import Wanted, Written, predict_file

__all__ = ["Wanted", "Written", "evaluate", "predict_file"]
