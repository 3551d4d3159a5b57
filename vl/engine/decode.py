"""The decode step: one new token for every sequence being written.

On a GPU the step, sampling included, is a CUDA graph for each of a few batch sizes: a batch is filled up with rows that
read and write the cache's scratch slot. The host writes a page of numbers and reads the tokens; nothing in between
waits. Elsewhere the same function runs as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed
from vl.engine.choosing import Chooser, Chosen
from vl.engine.graphs import Recorder
from vl.engine.params import Draw
from vl.engine.request import Request
from vl.engine.sampling import ALL, SamplingRows, sample


class StepInputs:
    """What a step over `size` rows reads, in memory that stays where it is, and its twin on the host.

    Attributes:
        tokens: int64 [size], the last token of each row.
        past: int64 [size], tokens of each row that are in the cache.
        slots: int64 [size].
        chosen: int64 [size], where the step leaves the next token of each row.
        logits: float32 [size, vocab], where it does those if the tokens are chosen elsewhere.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        width = size + size % 2  # every row begins at a 16-byte boundary, for which kernels are compiled
        self._host = torch.zeros(8, width, dtype=torch.int64, pin_memory=device.type == "cuda")
        # The same memory: filling it through NumPy takes a fifth of the time, during which the GPU has nothing to do.
        self._whole, self._real = self._host[:6, :size].numpy(), _floats(self._host)[:, :size].numpy()
        self._device = torch.zeros(8, width, dtype=torch.int64, device=device)
        self._offsets = torch.arange(size + 1, device=device)
        self.chosen = torch.zeros(size, dtype=torch.int64, device=device)
        self.logits = torch.empty(size, 0, device=device)
        self.tokens, self.past, self.slots, self._keys, self._top_k, self._next = self._device[:6, :size]
        self._temperature, self._top_p, self._min_p = _floats(self._device)[:, :size]
        self._pasts = self._slot_ids = (0,) * size

    def fill(self, requests: Sequence[Request], scratch: int = 0) -> None:
        """Put `requests` in the first rows, and the slot `scratch` in the others."""
        spare = self.size - len(requests)
        self._pasts = (*(r.computed for r in requests), *(0,) * spare)
        self._slot_ids = (*(r.slot for r in requests if r.slot is not None), *(scratch,) * spare)
        self._whole[0] = [*(r.token_ids[-1] for r in requests), *(0,) * spare]
        self._whole[1:3] = self._pasts, self._slot_ids
        self._whole[3] = [*(r.key for r in requests), *(0,) * spare]
        self._whole[4] = [*(r.params.top_k or ALL for r in requests), *(ALL,) * spare]
        self._whole[5] = self._whole[1] + 1
        self._real[0] = [*(r.params.temperature for r in requests), *(0.0,) * spare]
        self._real[1] = [*(r.params.top_p for r in requests), *(1.0,) * spare]
        self._real[2] = [*(r.params.min_p for r in requests), *(0.0,) * spare]
        self._device.copy_(self._host, non_blocking=True)

    def packed(self) -> Packed:
        """The rows as a batch of single tokens."""
        return Packed(
            offsets=self._offsets,
            past=self.past,
            slots=self.slots,
            lengths=(1,) * self.size,
            starts=tuple(range(self.size)),
            pasts=self._pasts,
            slot_ids=self._slot_ids,
        )

    def sampling(self) -> SamplingRows:
        """The rows as the sampler sees them: what it chooses stands behind the token that is read."""
        return SamplingRows(self._keys, self._next, self._top_k, self._temperature, self._top_p, self._min_p)


def _floats(rows: Tensor) -> Tensor:
    """The last of the int64 rows [8, width] as float32 [3, width]."""
    return rows[6:].view(torch.float32).view(4, -1)[:3]


class DecodeStep:
    """Runs the step over a model and a cache, which it must not outlive.

    Args:
        choose: chooses the tokens of batches with options that no graph knows; those of others are chosen in it.
        recorder: makes graphs of the step, for which the cache needs a scratch slot; None always runs it as it is.
    """

    def __init__(
        self, model: MiniMaxText, cache: HybridCache, choose: Chooser, recorder: Recorder | None = None
    ) -> None:
        self._model, self._cache, self._choose, self._recorder = model, cache, choose, recorder
        self._inputs: dict[int, StepInputs] = {}
        self._replays: dict[tuple[int, Draw | None], Callable[[], None]] = {}

    def forget(self) -> None:
        """Drop what was recorded: the model's weights have moved, or it does something else with them."""
        self._replays.clear()

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Chosen]:
        """The next token of each request, all of whose tokens but the last are in the cache.

        Raises:
            ValueError: if a request's slot has no room for a token more.
        """
        apart = any(request.params.apart for request in requests)
        draw = None if apart else max(request.params.draw for request in requests)
        slots = [request.slot for request in requests if request.slot is not None]
        # Copies from host memory are asked for anew in every step: no graph holds them.
        replay = self._replay(len(requests), draw) if self._cache.on_device(slots) else None
        inputs = self._inputs_of(self._bucket(len(requests)) if replay else len(requests))
        inputs.fill(requests, self._cache.scratch_slot or 0)
        packed = inputs.packed()
        if replay:
            self._cache.check(packed)
            replay()
        else:
            self._step(inputs, packed, draw)
        if apart:
            return self._choose(inputs.logits[: len(requests)], requests)
        return [Chosen(token) for token in inputs.chosen[: len(requests)].tolist()]

    def _step(self, inputs: StepInputs, packed: Packed, draw: Draw | None) -> None:
        """From `inputs` to `inputs.chosen`, or to `inputs.logits` if `draw` is None.

        Given the same `size` and `draw`, it is always the same work on the device.
        """
        hidden = self._model(self._model.embed(inputs.tokens), packed, self._cache)  # [size, hidden]
        logits = self._model.logits(hidden)
        if draw is None:
            inputs.logits = logits
        else:
            inputs.chosen.copy_(sample(logits, inputs.sampling(), draw))

    def record(self, count: int, draw: Draw | None) -> None:
        """Record the step for so many rows, where it can be, before there are any."""
        self._replay(count, draw)

    def _replay(self, count: int, draw: Draw | None) -> Callable[[], None] | None:
        """The recorded step for so many rows; None if it has to run as it is."""
        if self._recorder is None or self._cache.scratch_slot is None:
            return None
        if not self._recorder.ready(self._model.lm_head.weight):
            return None
        size = self._bucket(count)
        if (size, draw) not in self._replays:
            inputs = self._inputs_of(size)
            inputs.fill([], self._cache.scratch_slot)  # recording runs the step too, and no sequence may notice
            try:
                self._replays[size, draw] = self._recorder.record(partial(self._step, inputs, inputs.packed(), draw))
            except RuntimeError as error:
                self._recorder = None
                warnings.warn(
                    f"the decode step could not become a CUDA graph, so it is launched op by op, which is slower: "
                    f"{error}",
                    stacklevel=2,
                )
                return None
        return self._replays[size, draw]

    def _bucket(self, count: int) -> int:
        """The next power of two, or all slots."""
        return min(1 << (count - 1).bit_length(), self._cache.slots)

    def _inputs_of(self, size: int) -> StepInputs:
        if size not in self._inputs:
            self._inputs[size] = StepInputs(size, self._cache.page_table.device)
        return self._inputs[size]
