"""What fits where, and how fast: every placement of a model on a machine, or the smallest machines for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vl.config import VLConfig
from vl.errors import ConfigError
from vl.plan.formats import FORMATS, Format, find_format
from vl.plan.gpus import Gpu, Machine, known_gpus
from vl.plan.memory import FRAGMENTS, Memory, activation_memory, cache_memory, host_cache_memory, overhead
from vl.plan.share import CONTEXT, SPILLED, Placement, Share, placements
from vl.plan.sizes import expert, expert_bytes, stored, weight_bytes
from vl.plan.speed import Estimate, Speed
from vl.plan.workload import LIMIT, Workload

COUNTS = (1, 2, 4, 8)  # of GPUs, as hosts have them
NO_ROOM = "no room"  # an option's problem


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a model.

    Attributes:
        placement: its kind; see `vl.plan.share.Placement`.
        memory: of the fullest GPU.
        max_context: tokens of each sequence that fit, the others of the workload's numbers as they are; 0 if none do.
        speed: None where it does not fit, or the GPU cannot compute in this format.
        spilled: the part of the experts that is in host memory alone.
        problem: why it cannot be used; empty if it can.
    """

    machine: Machine
    format: str
    placement: str
    memory: Memory
    max_context: int
    speed: Speed | None
    spilled: float
    problem: str

    @property
    def fits(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Plan:
    """Options for a workload, the best first."""

    workload: Workload
    options: tuple[Option, ...]

    @property
    def best(self) -> Option | None:
        """The first that can be used."""
        return next((option for option in self.options if option.fits), None)


def plan(config: VLConfig, machine: Machine, work: Workload | None = None, formats: Sequence[str] = ()) -> Plan:
    """Every placement on a machine, the fastest in writing first, and then what does not fit.

    Args:
        formats: names of `FORMATS`; all if there are none, or the one that the checkpoint is stored in.

    Raises:
        ConfigError: if a format is not known, or the checkpoint is stored in another.
    """
    work = work or Workload()
    options = [
        consider(placement, FORMATS[name], machine, work)
        for name in _possible(config, formats)
        for placement in placements(config, machine.count)
        if not (placement.kind == CONTEXT and work.host_cache_tokens)  # which `vl.load` refuses
    ]
    # Where everything fits without it, nothing is spilled.
    roomy = {option.format for option in options if option.fits and option.placement != SPILLED}
    kept = [option for option in options if option.placement != SPILLED or option.format not in roomy]
    return Plan(work, tuple(sorted(kept, key=_slowness)))


def smallest(
    config: VLConfig, work: Workload | None = None, formats: Sequence[str] = (), host_memory: int | None = None
) -> Plan:
    """For each known GPU and format, the fewest GPUs that hold the model; the smallest machine first.

    Args:
        formats: as of `plan`.
        host_memory: bytes of the host's memory that experts may be kept in; None: they may not.

    Raises:
        ConfigError: as `plan`.
    """
    work = work or Workload()
    found = [
        option
        for gpu in known_gpus().values()
        for name in _possible(config, formats)
        if (option := _fewest(config, gpu, name, work, host_memory))
    ]
    return Plan(work, tuple(sorted(found, key=lambda o: (o.machine.gpu.memory * o.machine.count, _slowness(o)))))


def _possible(config: VLConfig, formats: Sequence[str]) -> Sequence[str]:
    stored, asked = config.quantization, [find_format(name).name for name in formats]
    if stored is None:
        return asked or tuple(FORMATS)
    others = [name for name in asked if name != stored]
    if others:
        raise ConfigError(f"the checkpoint is stored in {stored}: leave {', '.join(others)} out, or name the bf16 one")
    return (stored,)


def _fewest(config: VLConfig, gpu: Gpu, name: str, work: Workload, host_memory: int | None) -> Option | None:
    """The fastest option of the fewest GPUs; with experts in host memory only if that is allowed."""
    for count in COUNTS:
        best = plan(config, Machine(gpu, count, host_memory), work, [name]).best
        if best and (best.placement != SPILLED or host_memory is not None):
            return best
    return None


def _slowness(option: Option) -> tuple[bool, float]:
    return not option.fits, option.speed.decode if option.speed else 0.0


def consider(placement: Placement, form: Format, machine: Machine, work: Workload) -> Option:
    """Memory, context and speed of one placement."""
    gpu = machine.gpu
    memory, spilled = _memory(placement, form, machine, work)
    problem = _problem(placement, form, memory, machine)
    speed = None if problem else Estimate(placement, form, gpu, spilled, near=_near(work)).speed(work)
    return Option(
        machine=machine,
        format=form.name,
        placement=placement.kind,
        memory=memory,
        max_context=_max_context(placement, form, machine, work),
        speed=speed,
        spilled=spilled,
        problem=problem,
    )


def _problem(placement: Placement, form: Format, memory: Memory, machine: Machine) -> str:
    if form.name == "fp8" and machine.gpu.fp8 is None:
        return f"{machine.gpu.name} has no FP8"
    if not all(share.consists_of(form.experts.block) for share in placement.shares):
        return f"cuts blocks of {form.experts.block}"
    if not memory.fits:
        return NO_ROOM
    if machine.host_memory is not None and memory.host > machine.host_memory:
        return "host memory"
    return ""


def _memory(placement: Placement, form: Format, machine: Machine, work: Workload) -> tuple[Memory, float]:
    """Of the fullest GPU, and the part of the experts that it has not. The host has all: none is written back."""
    rows = [_on_gpu(share, form, machine, work, placement.kind) for share in placement.shares]
    fullest = max(rows, key=lambda memory: memory.total)
    host = sum(memory.host for memory in rows) * (placement.gpus // len(rows))
    fullest = replace(fullest, host=host)
    if placement.kind != SPILLED:
        return fullest, 0.0
    experts = int(expert_bytes(placement.shares[0].text, form.experts))
    spilled = min(experts, max(0, fullest.total - fullest.available))
    host += experts * placement.gpus if spilled else 0
    memory = replace(fullest, weights=fullest.weights - spilled, host=host)
    return memory, spilled / experts


def _on_gpu(share: Share, form: Format, machine: Machine, work: Workload, kind: str) -> Memory:
    states, kv = cache_memory(share.text, work, work.tokens)
    return Memory(
        weights=int(weight_bytes(share, form)),
        states=states,
        kv=kv,
        activations=activation_memory(share, form, work, work.tokens) + _staging(share, form, kind),
        overhead=overhead(machine.count),
        available=int((1 - FRAGMENTS) * machine.gpu.memory),
        host=host_cache_memory(share.text, work),
    )


def _near(work: Workload) -> float | None:
    """Tokens of each sequence whose keys and values are on the GPU, when all of it is cached; None: all of them."""
    return max(0.0, work.tokens - work.host_cache_tokens / work.batch) if work.host_cache_tokens else None


def _staging(share: Share, form: Format, kind: str) -> int:
    """Room for an expert that comes from the host while another is multiplied with."""
    return int(2 * stored(expert(share.text), form.experts)) if kind == SPILLED else 0


def _max_context(placement: Placement, form: Format, machine: Machine, work: Workload) -> int:
    """The most tokens of each sequence, images included, for which every GPU has room; whole pages."""
    return min(_most_pages(share, form, machine, work, placement.kind) for share in placement.shares) * work.page_size


def _most_pages(share: Share, form: Format, machine: Machine, work: Workload, kind: str) -> int:
    """By bisection: more tokens never need less memory. Experts that a host can take need not be on a GPU."""
    experts = int(expert_bytes(share.text, form.experts))
    taken = machine.host_memory is None or experts * machine.count <= machine.host_memory
    elsewhere = experts if kind == SPILLED and taken else 0
    fixed = weight_bytes(share, form) - elsewhere + overhead(machine.count) + _staging(share, form, kind)
    available = (1 - FRAGMENTS) * machine.gpu.memory

    def fits(pages: int) -> bool:
        tokens = pages * work.page_size
        cache = sum(cache_memory(share.text, work, tokens))
        return fixed + cache + activation_memory(share, form, work, tokens) <= available

    low, high = 0, max(1, LIMIT // (work.page_size * work.batch))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
