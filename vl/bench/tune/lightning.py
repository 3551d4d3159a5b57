"""Candidates for the tables of `text_backbone.kernels.lightning`, as it lists them itself.

Its `CANDIDATES` maps the name of a table, a dict by head dimension, to the entries to try there by head dimension; they
are for bfloat16 on GPUs of large shared memory, the first of a table's. BACKWARD is timed on a training step, the
others on prompts too. WALK is the kernel for every GPU; Hopper has one of its own for heads of 128. Decode has a module
and a table of its own, by the size of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import cycle
from typing import Any

import torch

from text_backbone import Packed
from text_backbone.lightning import decay_slopes
from vl.bench.timing import rotations
from vl.bench.tune.sweeps import Sweep
from vl.errors import InputError

PROMPTS = ([32768], [2048], [8192], [2048] * 16)
STEP = [1176] * 60 + [9864] * 6  # a training step: pictures of one tile, and a few large ones
BATCHES = (1, 8, 64, 256)  # sequences that get a token each
FULL, NANO = (64, 128), (3, 64)  # heads and head dimension


def sweeps(device: torch.device) -> Iterator[Sweep]:
    kernels: Any = import_module("text_backbone.kernels.lightning.triton")
    candidates = getattr(kernels, "CANDIDATES", None)
    if candidates is None:
        raise InputError("the lightning kernels list no CANDIDATES to tune")
    for table, by_dim in candidates.items():
        training = table == "BACKWARD"
        shapes = [(NANO, STEP)] if training else [*((FULL, lengths) for lengths in PROMPTS), (NANO, STEP)]
        for shape, lengths in shapes:
            if shape[1] in by_dim:
                yield _sweep(kernels, table, tuple(by_dim[shape[1]]), shape, lengths, training, device)
    for batch in BATCHES:
        yield _decode_sweep(batch, device)


def _decode_sweep(batch: int, device: torch.device) -> Sweep:
    """Every launch takes other states, as from layer to layer; all are the same and stay so: k is 0 and no decay."""
    decode: Any = import_module("text_backbone.kernels.lightning.decode")
    (heads, d), home = FULL, torch.device("cpu") if device.type == "meta" else device
    packed = Packed.of([1] * batch, past=[1000] * batch, device=home)
    qkv = torch.zeros(batch, heads, 3, d, device=device, dtype=torch.bfloat16)
    layers = 1 if qkv.is_meta else rotations(4 * batch * heads * d * d, device)
    states = torch.empty(layers, batch, heads, d, d, device=device)
    if not qkv.is_meta:
        qkv[:, :, 0].normal_()
        states[:] = torch.randn_like(states[0])
    turn, slopes = cycle(states), torch.zeros(heads, device=home)

    def run(columns: Any) -> object:
        return decode.decode(qkv.flatten(1), slopes, packed, next(turn), columns)

    return Sweep(f"DECODE, batch {batch}", tuple(decode.CANDIDATES), run, decode.columns_for(batch * heads * d), True)


def _sweep(
    kernels: Any,
    table: str,
    candidates: tuple[Any, ...],
    shape: tuple[int, int],
    lengths: list[int],
    training: bool,
    device: torch.device,
) -> Sweep:
    (heads, d), entries = shape, getattr(kernels, table)
    home = torch.device("cpu") if device.type == "meta" else device  # of lengths: the host needs them to compile too
    packed, slopes = Packed.of(lengths, device=home), decay_slopes(heads, 40, 80, home)
    qkv = torch.empty(packed.tokens, heads * 3 * d, device=device, dtype=torch.bfloat16)
    grad = torch.empty(packed.tokens, heads * d, device=device, dtype=torch.bfloat16)
    if not qkv.is_meta:
        qkv.normal_()
        grad.normal_()

    def run(entry: Any) -> object:
        tiles = {} if training else {table.lower(): entry}
        out, cells, segments = kernels.forward(qkv, slopes, packed, None, **tiles)
        return kernels.backward(grad, qkv, slopes, packed, cells, segments, entry) if training else out

    now = entries[d][0]
    name = f"{table}[{d}], {heads} heads, {len(lengths)} sequences, {packed.tokens} tokens"
    return Sweep(name, candidates, run, now)
