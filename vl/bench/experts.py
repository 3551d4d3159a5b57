"""One layer's experts shared out over the processes of torchrun, as in training: forward, and with the backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from text_backbone import TextConfig
from text_backbone.moe import Experts
from text_backbone.parallel.dispatch import DispatchedExperts
from text_backbone.parallel.exchange import Lane
from vl.bench.records import Setting
from vl.training.dimensions import ParallelConfig
from vl.training.parallelize import World

FULL_MEMORY = 60e9  # bytes: the weights, their gradients, a part of both, and 32 768 tokens' activations
TOKENS, SMALL = (16384, 32768), (64, 128)  # of all processes together
_TURNS, _WARM_UPS = 7, 3
_FAVOURED, _FAVOUR = 4, 3.0  # experts that an uneven router prefers, and by how much in its logits


@dataclass(frozen=True)
class ExpertsRow:
    """One way of sharing, one batch: the slowest process's median seconds."""

    sharing: str
    tokens: int
    uneven: bool
    forward: float
    trained: float


def bench_experts(setting: Setting, world: World, say: Callable[[str], object]) -> Iterator[ExpertsRow]:
    """All experts in one process, with the smallest batch, then shared out: whole ones, parts of each, groups.

    All processes have to iterate in step. Every one has its own tokens; an uneven router sends most of them to four
    experts that lie together.

    Raises:
        ConfigError: if the experts cannot be shared out over so many processes.
    """
    hidden, inner, count = (64, 96, 8) if setting.small else (6144, 9216, 32)
    config = TextConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=count, num_experts_per_tok=2)
    ways = _ways(config, world.size)
    torch.manual_seed(0)
    whole = Experts(config, device=setting.device, dtype=setting.dtype)
    with torch.no_grad():
        whole.w13.normal_(std=hidden**-0.5)
        whole.w2.normal_(std=inner**-0.5)
    sizes = SMALL if setting.small else TOKENS
    for way in ways:
        name = _name(way)
        say(name)
        experts, alone = _shared_out(whole, way, setting.device), not way.dispatches
        for tokens in sizes[:1] if alone else sizes:
            for uneven in (False, True):
                own = tokens if alone else tokens // world.size
                yield ExpertsRow(name, tokens, uneven, *_measure(experts, own, uneven, setting, world))
        del experts


def _ways(config: TextConfig, processes: int) -> list[ParallelConfig]:
    """By the keys of a recipe's [parallel]."""
    ways = [ParallelConfig()]
    if processes > 1:
        ways += [ParallelConfig(expert=processes), ParallelConfig(expert_tensor=processes)]
        if config.num_local_experts >= 2 * processes:
            ways.insert(2, ParallelConfig(expert=processes, expert_groups=2))
    for way in ways:
        way.check_model(config)
    return ways


def _name(way: ParallelConfig) -> str:
    keys = ("expert", "expert_groups", "expert_tensor")
    return ", ".join(f"{key} = {getattr(way, key)}" for key in keys if getattr(way, key) > 1) or "none"


def _shared_out(whole: Experts, way: ParallelConfig, device: torch.device) -> Experts:
    if not way.dispatches:
        return whole
    sizes = (way.expert, way.expert_tensor)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("expert", "expert_tensor"))
    return DispatchedExperts(whole, mesh, way.expert_groups, Lane(device))


def _measure(experts: Experts, tokens: int, uneven: bool, setting: Setting, world: World) -> tuple[float, float]:
    """Seconds forward, and with the backward for tokens and weights."""
    width = experts.w2.shape[1]
    count = experts.sharing.experts if isinstance(experts, DispatchedExperts) else len(experts.w2)
    generator = torch.Generator(setting.device).manual_seed(1 + world.rank)
    x = torch.randn(tokens, width, generator=generator, device=setting.device, dtype=setting.dtype).requires_grad_()
    scores = torch.randn(tokens, count, generator=generator, device=setting.device)
    scores[:, :_FAVOURED] += _FAVOUR * uneven
    weights, chosen = scores.softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return experts(x, weights, chosen)

    def trained() -> None:
        x.grad = None
        experts.zero_grad(set_to_none=True)
        experts(x, weights, chosen).float().square().mean().backward()

    return _seconds(forward, setting.device, world), _seconds(trained, setting.device, world)


def _seconds(call: Callable[[], object], device: torch.device, world: World) -> float:
    """The median over turns that begin together, of the process that takes longest."""
    times = []
    for _ in range(_WARM_UPS + _TURNS):
        _settle(device, world)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return world.slowest(median(times[_WARM_UPS:]))


def _settle(device: torch.device, world: World) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    world.barrier()
