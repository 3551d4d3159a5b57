"""What first requests would wait for, done before they come: kernels are compiled, graphs recorded, memory is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from preprocessing import Inputs
from vl.engine.config import EngineConfig
from vl.engine.driven import Model
from vl.engine.embedding import AHEAD
from vl.engine.params import Draw, SamplingParams
from vl.engine.vision_graphs import MOST

_GROWTH = 4  # from one length of a prompt to the next: tiles of kernels change more rarely
_SAMPLINGS = {
    Draw.GREEDY: SamplingParams(max_new_tokens=2),
    Draw.PLAIN: SamplingParams(max_new_tokens=2, temperature=1.0, seed=0),
    Draw.FILTERED: SamplingParams(max_new_tokens=2, temperature=1.0, top_p=0.9, seed=0),
}


@dataclass(frozen=True)
class Rehearsal:
    """Something to do once.

    Attributes:
        tiles: encode so many, if any. `rows`: record the decode step of so many, if any, whose tokens are chosen as
            `draw` says: in it, or, None, after it.
        prompt: read it, if it is one, and write as `sampling` says.
    """

    tiles: int = 0
    rows: int = 0
    draw: Draw | None = Draw.GREEDY
    prompt: Inputs | None = None
    sampling: SamplingParams = _SAMPLINGS[Draw.GREEDY]


def rehearsals(model: Model, config: EngineConfig) -> Iterator[Rehearsal]:
    """All that is compiled or recorded for some size of a batch. Where neither is done, one of each kind."""
    gpu = model.device.type == "cuda"
    if model.vision is not None:
        few = [*range(2, MOST + 1), AHEAD] if gpu else [2]
        yield from (Rehearsal(tiles=tiles) for tiles in few)
    generator = torch.Generator().manual_seed(0)
    for length in _lengths(config, gpu):
        yield Rehearsal(prompt=_prompt(model, length, generator))
    for draw in (Draw.PLAIN, Draw.FILTERED):
        yield Rehearsal(prompt=_prompt(model, 2, generator), sampling=_SAMPLINGS[draw])
    for sampling in _apart(model):
        yield Rehearsal(prompt=_prompt(model, 2, generator), sampling=sampling)
    sizes = {min(1 << at, config.max_batch_size) for at in range(config.max_batch_size.bit_length() + 1)}
    for rows in sorted(sizes, reverse=True):  # the largest first: the others find the memory that it took
        yield from (Rehearsal(rows=rows, draw=draw) for draw in (*Draw, None))


def _apart(model: Model) -> Iterator[SamplingParams]:
    """What chooses tokens outside of the recorded step: of the forms of answers, their library reads the vocabulary."""
    yield SamplingParams(max_new_tokens=2, logprobs=True, top_logprobs=1, repetition_penalty=1.1, logit_bias={0: 1.0})
    if model.end_ids and find_spec("llguidance") is not None:
        yield SamplingParams(max_new_tokens=2, response_format={"type": "json_object"})


def _lengths(config: EngineConfig, gpu: bool) -> Sequence[int]:
    """Of prompts: from a token to a whole pass, and one that takes two."""
    if not gpu:
        return [24]
    most = min(config.prefill_tokens, config.cache_tokens)
    lengths = [1]
    while lengths[-1] * _GROWTH < most:
        lengths.append(lengths[-1] * _GROWTH)
    return [*lengths, most, min(most + 64, config.cache_tokens)]


def _prompt(model: Model, tokens: int, generator: torch.Generator) -> Inputs:
    """Random ids that are no image's, so that they go to all of the experts."""
    ids = torch.randint(model.config.text.vocab_size, (tokens,), generator=generator)
    if model.config.image_token_index is not None:
        ids[ids == model.config.image_token_index] = 0 if model.config.image_token_index else 1
    return Inputs(ids, torch.empty(0, 3, 0, 0, dtype=torch.uint8), [])
