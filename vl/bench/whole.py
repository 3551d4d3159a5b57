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

from preprocessing import Inputs, Processor
from text_backbone import TextConfig
from vl.bench.formats import fill, numbers_of
from vl.config import VLConfig
from vl.engine import Engine, EngineConfig, Generation, SamplingParams
from vl.hub import NANO
from vl.loading import patcher_of, pick_dtype
from vl.model import MiniMaxVL
from vl.plan import FORMATS, Machine, Option, Workload, plan
from vl.plan.gpus import gpu_of
from vl.plan.models import find_config
from vl.plan.share import ONE
from vl.plan.sizes import attention_bytes, expert_bytes, kv_bytes, router_bytes, state_bytes, table_bytes
from vl.plan.speed import used_experts
from vl.ranks.devices import read_devices
from vl.ranks.model import SplitVL
from vl.ranks.processes import Ranks
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
) -> Iterator[Figure]:
    """Build a model with random weights and measure it, figure by figure.

    Args:
        model: what `vl plan` takes.
        layers: so many of its first layers; None: all.
        quantization, devices, placement, device: as of `vl.load`.
        prompts: lengths in tokens that are read. batches: numbers of sequences that are written at once.
        prefill_tokens: read at a time.
        image: width and height of the picture that is asked about.

    Raises:
        ConfigError, DeviceError: as `vl.load`.
    """
    config = find_config(model)
    kinds = config.text.attn_type_list[:layers]
    engine = EngineConfig(
        max_batch_size=max(batches),
        prefill_tokens=prefill_tokens,
        cache_tokens=max([*prompts, max(batches) * 2 * (CONTEXT + WRITTEN)]) + 4096,
    )
    asked = read_devices(devices if devices is not None else 1, placement, device)
    assert asked is not None
    placed = asked.place(config, quantization, engine)
    dtype = pick_dtype(None, placed.devices[0])
    config = replace(config, text=replace(config.text, attn_type_list=kinds), quantization=quantization)
    processor = Processor.load(NANO, patcher_of(config))
    config = replace(config, image_token_index=processor.tokenizer.token_id(processor.image_token))
    begun = time.perf_counter()
    if len(placed.devices) > 1:
        build = partial(random_model, config, model, dtype, placed.placement)
        ranks = Ranks(build, placed.devices, engine, timeout=STEP_TIMEOUT)
        whole: MiniMaxVL = SplitVL(config, processor, ranks, name=model, dtype=dtype, engine=engine)
    else:
        whole = random_model(config, model, dtype, None, placed.devices[0], None)
        whole.engine = Engine(whole, engine)
    expected = partial(_planned, config, placed.devices, placed.placement, quantization or "bf16", prefill_tokens)
    try:
        yield Figure("made and loaded", time.perf_counter() - begun, "s")
        if config.vision is not None:
            yield from _picture(whole, image)
        yield from _measure(whole, config, expected, prompts, batches)
        # The cache is there for as many sequences as were ever written at once.
        yield from _memory(whole, expected(engine.cache_tokens // engine.max_batch_size, engine.max_batch_size)[0])
    finally:
        if isinstance(whole, SplitVL):
            whole.close()


# The model


def random_model(
    config: VLConfig,
    name: str,
    dtype: torch.dtype,
    placement: str | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> MiniMaxVL:
    """A model, or this rank's part of one, with weights that keep activations of order one."""
    processor = Processor.load(NANO, patcher_of(config))
    model = MiniMaxVL(config, processor, name=name, device=device, dtype=dtype, placement=placement)
    parts = list(model.named_modules())
    for done, (where, module) in enumerate(parts, 1):
        # What every rank has must be equal on all, so what is drawn for a module depends on its name alone.
        fill(module, numbers_of(where, device), where)
        if progress is not None:
            progress(done, len(parts))
    return model.eval().requires_grad_(False)


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
        _run(model, config, CONTEXT, batch, 6)
        done = _run(model, config, CONTEXT, batch, WRITTEN)
        # The shortest: while the last prompts are read, those that were first wait for their second token.
        seconds = min(result.timings.decode for _, result in done) / (WRITTEN - 1)
        experts = _experts(model, [prompt + result.token_ids for prompt, result in done])
        option, floor = expected(CONTEXT, batch, experts)
        planned = option.speed.decode_tokens if option and option.speed else None
        best = None if floor is None else batch / floor
        likely = used_experts(config.text, batch)
        note = "" if experts is None else f"{experts:.1f} experts of a layer, {likely:.1f} where all are as likely"
        yield Figure(f"write, batch {batch}", batch / seconds, "tokens/s", best, planned, note)


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
