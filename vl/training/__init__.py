"""Training: from scratch on rendered pictures, or from a checkpoint on the user's data."""

from vl.training.config import TrainConfig
from vl.training.lora import load_adapter
from vl.training.train import train

__all__ = ["TrainConfig", "load_adapter", "train"]
