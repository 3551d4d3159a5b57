"""The whole model on this host's GPUs, its weights random: load, memory, reading and writing, beside `vl plan`.

Everything but the values is as `vl.load` has it: the same modules, formats, processes, engine and graphs. The values
are made on the devices, in the format that they are stored in: no checkpoint of hundreds of gigabytes is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from preprocessing import Inputs
from text_backbone import TextConfig
from vl.bench.crowd import Crowd
from vl.bench.made import random_whole
from vl.config import VLConfig
from vl.engine import EngineConfig, Generation, SamplingParams
from vl.errors import ConfigError
from vl.loading import patcher_of
from vl.model import MiniMaxVL
from vl.plan import FORMATS, Machine, Option, Workload, plan
from vl.plan.gpus import gpu_of
from vl.plan.models import find_config
from vl.plan.share import ONE
from vl.plan.sizes import attention_bytes, expert_bytes, kv_bytes, router_bytes, state_bytes, table_bytes
from vl.plan.speed import used_experts
from vl.ranks.model import SplitVL
from vl.routing import last_experts

WRITTEN = 48  # tokens of each sequence, of which the first is a prompt's
CONTEXT = 128  # tokens of the prompts after which is written
STEP_TIMEOUT = 400.0  # seconds: the first steps compile kernels


@dataclass(frozen=True)
class Figure:
    """One measurement. `floor` and `planned` in the same unit as `value`; None where there is none."""

    what: str
    value: float
    unit: str
    floor: float | None = None
    planned: float | None = None
    note: str = ""


def bench_whole(
    model: str = "MiniMax-VL-01",
    *,
    layers: int | None = None,
    quantization: str | None = "nf4",
    devices: Any = None,
    placement: str | None = None,
    device: str | None = None,
    prompts: Sequence[int] = (8192, 32768),
    batches: Sequence[int] = (1, 8, 64),
    prefill_tokens: int = 16384,
    image: tuple[int, int] = (1344, 1008),
    crowd: Crowd | None = None,
) -> Iterator[Figure]:
    """Build a model with random weights and measure it, figure by figure.

    Args:
        model: what `vl plan` takes.
        layers: so many of its first layers; None: all.
        quantization, devices, placement, device: as of `vl.load`.
        prompts: lengths in tokens that are read. batches: numbers of sequences that are written at once.
        prefill_tokens: read at a time.
        image: width and height of the picture that is asked about.
        crowd: many questions that are asked at once, as the first thing of all and again later.

    Raises:
        ConfigError, DeviceError: as `vl.load`; ConfigError also if the model takes no pictures for a crowd.
    """
    slots = max([*batches, crowd.requests if crowd else 1])
    engine = EngineConfig(
        max_batch_size=slots,
        prefill_tokens=prefill_tokens,
        cache_tokens=max([*prompts, slots * 2 * (CONTEXT + WRITTEN), _crowded(crowd, model)]) + 4096,
    )
    begun = time.perf_counter()
    whole, placed = random_whole(
        model, layers=layers, quantization=quantization, devices=devices if devices is not None else 1,
        placement=placement, device=device, step_timeout=STEP_TIMEOUT, engine=engine,
    )  # fmt: skip
    config = whole.config
    expected = partial(
        _planned, config, placed.devices, placed.placement, config.quantization or "bf16", prefill_tokens
    )
    try:
        yield Figure("made and loaded", time.perf_counter() - begun, "s")
        if crowd is not None:
            yield Figure(crowd.name, crowd.seconds(whole, 1), "s", note="first time, compiling")
        if config.vision is not None:
            yield from _picture(whole, image)
        if crowd is not None:
            yield from _again(whole, config, crowd)
        yield from _measure(whole, config, expected, prompts, batches)
        # The cache is there for as many sequences as were ever written at once.
        yield from _memory(whole, expected(engine.cache_tokens // engine.max_batch_size, engine.max_batch_size)[0])
    finally:
        if isinstance(whole, SplitVL):
            whole.close()


# Measuring


def _measure(
    model: MiniMaxVL,
    config: VLConfig,
    expected: Callable[..., tuple[Option | None, float | None]],
    prompts: Sequence[int],
    batches: Sequence[int],
) -> Iterator[Figure]:
    for tokens in prompts:
        for note in ("first time, compiling", ""):
            took = _run(model, config, tokens, 1, 1)[0][1].timings.prefill
            option, _ = expected(tokens, 1)
            planned = option.speed.prefill_tokens if option and option.speed else None
            yield Figure(f"read {tokens:,} tokens", tokens / took, "tokens/s", planned=planned, note=note)
    for batch in batches:
        seconds, done = _step(model, config, batch)
        experts = _experts(model, [prompt + result.token_ids for prompt, result in done])
        option, floor = expected(CONTEXT, batch, experts)
        planned = option.speed.decode_tokens if option and option.speed else None
        best = None if floor is None else batch / floor
        likely = used_experts(config.text, batch)
        note = "" if experts is None else f"{experts:.1f} experts of a layer, {likely:.1f} where all are as likely"
        yield Figure(f"write, batch {batch}", batch / seconds, "tokens/s", best, planned, note)


def _step(model: MiniMaxVL, config: VLConfig, batch: int) -> tuple[float, list[tuple[list[int], Generation]]]:
    """Seconds of a step that writes a token for each of `batch` sequences, and what they were."""
    _run(model, config, CONTEXT, batch, 6)
    done = _run(model, config, CONTEXT, batch, WRITTEN)
    # The shortest: while the last prompts are read, those that were first wait for their second token.
    return min(result.timings.decode for _, result in done) / (WRITTEN - 1), done


def _crowded(crowd: Crowd | None, model: str) -> int:
    """Tokens of the cache that a crowd takes. Raises ConfigError if the model has no eyes for its pictures."""
    if crowd is None:
        return 0
    patcher = patcher_of(find_config(model))
    if patcher is None:
        raise ConfigError(f"{model} takes no images, and questions of a crowd have one each")
    return crowd.tokens(patcher)


def _again(model: MiniMaxVL, config: VLConfig, crowd: Crowd) -> Iterator[Figure]:
    """The crowd with other pictures, beside what reading and writing take by themselves."""
    read, step = crowd.read_alone(model, 2), _step(model, config, crowd.requests)[0]
    yield Figure("one of these questions alone, encoded and read", 1e3 * read, "ms")
    yield Figure(f"a step of {crowd.requests} sequences alone", 1e3 * step, "ms")
    took, floor = crowd.seconds(model, 3), crowd.floor(read, step)
    yield Figure(crowd.name, took, "s", floor, note=f"{took / floor:.2f} of what its parts take alone")


def _experts(model: MiniMaxVL, texts: list[list[int]]) -> float | None:
    """Experts of a layer in the mean that a step reads for the last tokens of texts; None where that cannot be told."""
    counts = model.last_experts(texts) if isinstance(model, SplitVL) else last_experts(model, texts)
    return None if counts is None else sum(counts) / len(counts)


def _picture(model: MiniMaxVL, image: tuple[int, int]) -> Iterator[Figure]:
    """An image and a question, and another question after the answer, through the door that users take."""
    width, height = image
    for seed, note in enumerate(("first time, compiling", "")):  # pictures that nothing is kept of
        drawn = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=drawn)
        parts = [{"type": "image", "image": pixels.numpy()}, {"type": "text", "text": "What is in this picture?"}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        begun = time.perf_counter()
        first = model.generate([turns], max_new_tokens=16)[0]
        took = time.perf_counter() - begun
        written = note or f"{first.usage.prompt_tokens:,} tokens, {len(first.token_ids)} written"
        yield Figure(f"{width} x {height} image and a question", took, "s", note=written)
        turns += {"role": "assistant", "content": first.text}, {"role": "user", "content": "And where is it?"}
        second = model.generate([turns], max_new_tokens=16)[0]
        before, after = (result.timings.vision + result.timings.prefill for result in (first, second))
        found = f"{after / before:.1%} of the first one's; {second.usage.cached_tokens:,} tokens found"
        yield Figure("next question, to the first token", 1e3 * after, "ms", note=note or found)


def _run(
    model: MiniMaxVL, config: VLConfig, tokens: int, batch: int, written: int
) -> list[tuple[list[int], Generation]]:
    """Read `batch` random prompts and write after each: the prompts' ids, and what was written.

    Of several each draws its tokens: random weights would give all the same most likely one, and few experts to read.
    """
    engine = model.engine
    least = 1000 if config.text.vocab_size > 10000 else 1
    prompts, requests = [], []
    for row in range(batch):
        params = SamplingParams(max_new_tokens=written, temperature=float(batch > 1), seed=row)
        ids = torch.randint(least, config.text.vocab_size, (tokens,))
        ids[ids == config.image_token_index] = least
        prompts.append(ids.tolist())
        requests.append(engine.prepare(Inputs(ids, torch.empty(0, 3, 1, 1, dtype=torch.uint8), []), params))
    return list(zip(prompts, engine.run(requests), strict=True))


def _memory(model: MiniMaxVL, option: Option | None) -> Iterator[Figure]:
    """Bytes that PyTorch holds at the peak, and what the driver says is taken of each GPU."""
    planned = option.memory.total / 2**30 if option else None
    if isinstance(model, SplitVL):
        peaks = model.memory()
    elif model.device.type == "cuda":
        peaks = [torch.cuda.max_memory_allocated(model.device)]
    else:
        return
    for i, peak in enumerate(peaks):
        place = model.devices[i] if isinstance(model, SplitVL) else model.device
        if place.type != "cuda":
            continue
        free, total = torch.cuda.mem_get_info(place)
        note = f"{peak / 2**30:.1f} GiB of PyTorch's at the peak"
        yield Figure(f"memory of {place}", (total - free) / 2**30, "GiB", planned=planned, note=note)


# What to expect


def _planned(
    config: VLConfig,
    devices: Sequence[torch.device],
    placement: str,
    format: str,
    prefill_tokens: int,
    tokens: int,
    batch: int,
    experts: float | None = None,
) -> tuple[Option | None, float | None]:
    """`vl plan`'s option, and the seconds in which the bytes of a step, of so many experts, could be read."""
    gpu = gpu_of(devices[0])
    if gpu is None:
        return None, None
    machine = Machine(gpu, len(devices))
    work = Workload(context=tokens, batch=batch, prefill_tokens=prefill_tokens)
    options = plan(replace(config, quantization=None), machine, work, (format,)).options
    kind = placement if len(devices) > 1 else ONE
    option = next((option for option in options if option.placement == kind), None)
    return option, step_bytes(config.text, format, batch, tokens, experts) / (len(devices) * gpu.bandwidth)


def step_bytes(text: TextConfig, format: str, batch: int, context: int, used: float | None = None) -> float:
    """What a step of writing has to read, and of states also to write.

    used: experts of a layer, in the mean; None: as many as are expected if all are as likely.
    """
    form = FORMATS[format]
    share = (used_experts(text, batch) if used is None else used) / text.num_local_experts
    experts = share * expert_bytes(text, form.experts)
    weights = experts + attention_bytes(text, form.attention) + router_bytes(text) + table_bytes(text)
    return weights + 2 * state_bytes(text, batch) + kv_bytes(text, 0, 1, batch * context)
