"""Training: from a config to a run's folder."""

from mope.training.launch import train

__all__ = ["train"]
