"""Generation: requests share packed forward passes over one hybrid cache."""

from vl.engine.engine import Engine
from vl.engine.request import Generation, Request, Timings, Usage
from vl.engine.sampling import SamplingParams

__all__ = ["Engine", "Generation", "Request", "SamplingParams", "Timings", "Usage"]
