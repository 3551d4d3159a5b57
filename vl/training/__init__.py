"""Training from scratch on rendered pictures."""

from vl.training.config import TrainConfig
from vl.training.train import train

__all__ = ["TrainConfig", "train"]
