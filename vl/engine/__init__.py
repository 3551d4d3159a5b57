"""Generation: requests share packed forward passes over one hybrid cache."""

from vl.engine.config import EngineConfig
from vl.engine.driven import TextStream
from vl.engine.engine import Engine
from vl.engine.request import Request
from vl.engine.results import FinishReason, Generation, Timings, Usage
from vl.engine.sampling import SamplingParams

__all__ = [
    "Engine",
    "EngineConfig",
    "FinishReason",
    "Generation",
    "Request",
    "SamplingParams",
    "TextStream",
    "Timings",
    "Usage",
]
