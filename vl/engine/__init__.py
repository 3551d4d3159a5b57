"""Generation: requests share packed forward passes over one hybrid cache."""

from vl.engine.config import EngineConfig
from vl.engine.engine import Engine
from vl.engine.request import Generation, Request, TextStream, Timings, Usage
from vl.engine.sampling import SamplingParams

__all__ = ["Engine", "EngineConfig", "Generation", "Request", "SamplingParams", "TextStream", "Timings", "Usage"]
