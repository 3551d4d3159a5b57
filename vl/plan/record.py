"""A plan as JSON: stable names, bytes and seconds as numbers (described in docs/plan.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vl.config import VLConfig
from vl.plan.planner import Option, Plan
from vl.plan.sizes import parameters

SCHEMA = 3  # counts up when a name changes its meaning or goes


def as_json(name: str, config: VLConfig, plan: Plan) -> dict[str, Any]:
    """The model, the workload, and every option in the plan's order."""
    return {
        "schema": SCHEMA,
        "model": {"name": name, "parameters": parameters(config.text, config.vision)},
        "workload": asdict(plan.workload) | {"tokens": plan.workload.tokens},
        "options": [_option(option) for option in plan.options],
    }


def _option(option: Option) -> dict[str, Any]:
    machine, memory, speed = option.machine, option.memory, option.speed
    return {
        "gpu": machine.gpu.name,
        "gpus": machine.count,
        "measured_gpu": machine.gpu.measured,
        "quantization": option.format,
        "placement": option.placement,
        "fits": option.fits,
        "problem": option.problem,
        "memory": asdict(memory) | {"total": memory.total},
        "spilled_experts": option.spilled,
        "max_context": option.max_context,
        "speed": None if speed is None else asdict(speed) | {"first_token": speed.first_token},
    }
