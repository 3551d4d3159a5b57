"""Models with random weights, made where they are used: to measure a size of which there is no checkpoint.

Everything but the values is as `vl.load` has it: the same modules, formats, processes, engine and graphs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import tokenizers
import torch

from preprocessing import Background, Processor
from preprocessing.tokenizer import Tokenizer
from vl.bench.formats import fill, numbers_of
from vl.config import VLConfig
from vl.engine import Engine, EngineConfig
from vl.errors import ConfigError
from vl.hub import NANO
from vl.loading import patcher_of, pick_device, pick_dtype
from vl.model import MiniMaxVL
from vl.plan.models import find_config
from vl.ranks.devices import STEP_TIMEOUT, TENSOR, Placed, read_devices
from vl.ranks.model import SplitVL
from vl.ranks.processes import Ranks
from vl.room import check_host


def random_whole(
    model: str,
    *,
    layers: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
    devices: Any = None,
    placement: str | None = None,
    step_timeout: float | None = None,
    background: Background = None,
    engine: EngineConfig | None = None,
    spelling: bool = False,
) -> tuple[MiniMaxVL, Placed]:
    """A model of a config alone, with nano's tokenizer, and where it was put.

    Args:
        model: what `vl plan` takes.
        layers: so many of its first layers; None: all.
        device, dtype, quantization, devices, placement, step_timeout, background: as of `vl.load`.
        spelling: give each of the vocabulary's ids a text, by which whoever reads an answer sees its tokens. Otherwise
            those that nano does not have are no text.

    Raises:
        ConfigError, DeviceError, InputError: as `vl.load`; ConfigError also if there are no `layers` layers.
    """
    config, settings = find_config(model), engine or EngineConfig()
    if config.quantization is not None and quantization not in (None, config.quantization):
        raise ConfigError(f"quantization={quantization!r}: the config of {model} says {config.quantization}")
    kinds = config.text.attn_type_list
    if layers is not None and not 1 <= layers <= len(kinds):
        raise ConfigError(f"layers={layers}: {model} has {len(kinds)}")
    config = replace(
        config,
        text=replace(config.text, attn_type_list=kinds[:layers]),
        quantization=quantization or config.quantization,
    )
    asked = read_devices(devices, placement, device)
    placed = Placed((pick_device(device),), TENSOR) if asked is None else asked.place(config, quantization, settings)
    kind = pick_dtype(dtype, placed.devices[0])
    check_host(config, placed, name=model, dtype=kind)
    processor = Processor.load(NANO, patcher_of(config), background=background)
    if spelling:
        processor = replace(processor, tokenizer=spelt_out(processor.tokenizer, config.text.vocab_size))
    config = replace(config, image_token_index=processor.tokenizer.token_id(processor.image_token))
    if len(placed.devices) > 1:
        build = partial(random_model, config, model, kind, placed.placement)
        ranks = Ranks(build, placed.devices, settings, timeout=step_timeout or STEP_TIMEOUT)
        return SplitVL(config, processor, ranks, name=model, dtype=kind, engine=settings).eval(), placed
    whole = random_model(config, model, kind, None, placed.devices[0], None)
    whole.processor = processor
    whole.engine = Engine(whole, settings)
    return whole, placed


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


def spelt_out(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer with a text for each id below `size`, which no text is encoded to."""
    made = json.loads(tokenizer.backend.to_str())
    words = made["model"]["vocab"]
    taken = set(words.values()) | {token["id"] for token in made["added_tokens"]}
    words |= {f"Ġ<{token}>": token for token in range(size) if token not in taken}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(made)))
