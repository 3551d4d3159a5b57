"""The next tokens of requests, with what their options do to logits and ask of them.

What a penalty counts and a bias adds lies on the device, in a row for each of the cache's slots, and is made again from
the request's own tokens when another one has the slot. Requests without such options have none of this work, and their
logits stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vl.engine.params import SamplingParams
from vl.engine.request import Request
from vl.engine.sampling import SamplingRows, sample, sent
from vl.engine.structured import Masker


class Chosen(NamedTuple):
    """A request's next token.

    `logprobs`: of it, then of the likeliest ones in its place; as far as asked for. `error`: why there is none, after
    all: the form that the answer is held to cannot be followed any further.
    """

    token_id: int
    logprobs: Sequence[tuple[int, float]] = ()
    error: str = ""


class Chooser:
    """From logits to tokens.

    Args:
        slots: of the cache, each of which has at most one request.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._tables: _Tables | None = None
        self._mask = Masker()

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> list[Chosen]:
        """The next token of each request: float32 `[n, vocab]`, which may be written to."""
        params = [request.params for request in requests]
        # Before anything that waits for the logits: a GPU makes them meanwhile.
        masks = self._mask([(request.form, request.token_ids) for request in requests], logits)
        rows = SamplingRows.of(params, [r.key for r in requests], [r.known for r in requests], logits)
        asking = [i for i, p in enumerate(params) if p.logprobs]
        adjusted = self.adjusted(logits, requests)
        allowed = masks.applied(adjusted, own=not asking or adjusted is not logits)
        tokens = sample(allowed, rows, max(p.draw for p in params))
        told = {}
        if asking:
            at = sent(asking, torch.int64, logits.device)
            told = dict(zip(asking, _logprobs(logits[at], tokens[at], [params[i] for i in asking]), strict=True))
        return [Chosen(t, told.get(i, ()), masks.errors.get(i, "")) for i, t in enumerate(tokens.tolist())]

    def adjusted(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        """The logits that are drawn from; the same ones if nobody has it otherwise."""
        rows = [i for i, request in enumerate(requests) if request.params.adjusts]
        if not rows:
            return logits
        if self._tables is None:
            self._tables = _Tables.of(self._slots, logits)
        at = sent(rows, torch.int64, logits.device)
        return logits.index_copy(0, at, self._tables.adjusted(logits[at], [requests[i] for i in rows]))


def _logprobs(logits: Tensor, tokens: Tensor, params: Sequence[SamplingParams]) -> list[list[tuple[int, float]]]:
    """Of each row, which asks for so many: its token's, then the likeliest tokens'."""
    logprobs = logits.log_softmax(dim=-1)
    most = max(p.top_logprobs for p in params)
    top, ids = logprobs.topk(min(most, logits.shape[-1]), dim=-1)
    ids = torch.cat((tokens[:, None], ids), dim=1)
    values = torch.cat((logprobs.gather(1, tokens[:, None]), top), dim=1)
    pairs = zip(ids.tolist(), values.tolist(), params, strict=True)
    return [list(zip(names, found, strict=True))[: 1 + p.top_logprobs] for names, found, p in pairs]


@dataclass
class _Owner:
    """Whose row of the tables it is, and how many of its written tokens are counted there."""

    request: weakref.ref[Request]
    counted: int = 0


@dataclass
class _Tables:
    """What adjusts logits, by slot.

    Attributes:
        written: int32 [slots, vocab], how often each token is in the answer so far.
        prompt: bool [slots, vocab], whether it is in the prompt.
        bias: float32 [slots, vocab].
    """

    written: Tensor
    prompt: Tensor
    bias: Tensor
    owners: dict[int, _Owner] = field(default_factory=dict)

    @classmethod
    def of(cls, slots: int, logits: Tensor) -> _Tables:
        shape = slots, logits.shape[-1]
        written = torch.zeros(shape, dtype=torch.int32, device=logits.device)
        prompt = torch.zeros(shape, dtype=torch.bool, device=logits.device)
        return cls(written, prompt, logits.new_zeros(shape))

    def adjusted(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        """float32 [n, vocab] of requests that have slots."""
        slots = self._follow(requests)
        params = [request.params for request in requests]
        penalties = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
        repetition, frequency, presence = sent(penalties, logits.dtype, logits.device).T[..., None]  # [n, 1]
        written = self.written[slots]
        seen = (written > 0) | self.prompt[slots]
        logits = torch.where(seen, torch.where(logits < 0, logits * repetition, logits / repetition), logits)
        return logits - written * frequency - (written > 0) * presence + self.bias[slots]

    def _follow(self, requests: Sequence[Request]) -> Tensor:
        """Bring the requests' rows up to what they have written; int64 [n], which rows they are."""
        slots, new = [], []
        for request in requests:
            assert request.slot is not None
            slots.append(request.slot)
            owner = self.owners.get(request.slot)
            if owner is None or owner.request() is not request:
                owner = self._begin(request, request.slot)
            new += [(request.slot, token) for token in request.token_ids[owner.counted :]]
            owner.counted = len(request.token_ids)
        device = self.written.device
        if new:
            at = sent(new, torch.int64, device).T
            self.written.index_put_((at[0], at[1]), self.written.new_ones(len(new)), accumulate=True)
        return sent(slots, torch.int64, device)

    def _begin(self, request: Request, slot: int) -> _Owner:
        params, device = request.params, self.written.device
        for table in (self.written, self.prompt, self.bias):
            table[slot] = 0
        if params.repetition_penalty != 1:
            self.prompt[slot, request.prompt.input_ids.unique().to(device)] = True
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            self.bias[slot, ids] = self.bias.new_tensor(list(params.logit_bias.values()))
        self.owners[slot] = _Owner(weakref.ref(request))
        return self.owners[slot]
