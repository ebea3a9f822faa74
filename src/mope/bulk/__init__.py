"""Predictions of any number of rows, written in parts to a file; an interrupted one goes on."""

from mope.bulk.run import Wanted, Written, predict_file

__all__ = ["Wanted", "Written", "predict_file"]
