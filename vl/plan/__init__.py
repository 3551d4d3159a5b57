"""What a model needs to run: memory, context and speed of each format and placement on each machine, by arithmetic."""

from vl.plan.formats import FORMATS, Format, find_format
from vl.plan.gpus import Gpu, Machine, describe_gpu, find_gpu, known_gpus, parse_machine
from vl.plan.memory import Memory
from vl.plan.planner import Option, Plan, plan, smallest
from vl.plan.speed import Speed
from vl.plan.workload import Workload, image_cost

__all__ = [
    "FORMATS",
    "Format",
    "Gpu",
    "Machine",
    "Memory",
    "Option",
    "Plan",
    "Speed",
    "Workload",
    "describe_gpu",
    "find_format",
    "find_gpu",
    "image_cost",
    "known_gpus",
    "parse_machine",
    "plan",
    "smallest",
]
