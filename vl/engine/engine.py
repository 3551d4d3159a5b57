"""The engine: requests in, tokens out, many at a time.

Every step is one packed forward pass over a chunk of the prompts being read and one token of every sequence being
written; where no prompt is left to read, it is the decode step. Any thread that waits for its own request may drive a
step; requests of other threads ride along.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from preprocessing import Grid, Inputs
from text_backbone import CacheFull, HybridCache, MiniMaxText, Packed
from vision_encoder import Replay
from vl.engine.config import EngineConfig
from vl.engine.decode import DecodeStep
from vl.engine.graphs import GraphRecorder, Recorder
from vl.engine.request import Generation, Request, TextStream, Timings
from vl.engine.sampling import SamplingParams, SamplingRows, sample
from vl.engine.vision_graphs import VisionGraphs
from vl.errors import InputError


class Model(Protocol):
    """What an engine drives. It is asked anew for each step: between two it may be moved, cast or given adapters."""

    @property
    def language_model(self) -> MiniMaxText: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def embed(self, input_ids: Tensor, tiles: Tensor, grids: Sequence[Grid], replay: Replay | None = None) -> Tensor:
        """int64 `[tokens]`, uint8 `[n, 3, S, S]` and the images' grids to `[tokens, hidden]`."""

    def detokeniser(self) -> TextStream:
        """A new decoder for ids that come one by one."""


class Engine:
    """Continuous batching over one hybrid cache.

    A copy (`copy.deepcopy`, `pickle`) has the model's copy and the config, and nothing of what was queued or cached.

    Args:
        model: what the engine drives.
        config: how much it takes on at once.
    """

    def __init__(self, model: Model, config: EngineConfig | None = None) -> None:
        self.model = model
        self.config = config or EngineConfig()
        self._start()

    def _start(self) -> None:
        self._pages = self.config.pages
        self._cache: HybridCache | None = None
        self._decode: DecodeStep | None = None
        self._vision_graphs = VisionGraphs()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    # Requests

    def submit(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """Queue a prompt. It starts when a slot and its pages are free, first come first served."""
        if inputs.input_ids.numel() == 0:
            raise InputError("the prompt is empty: give at least one message")
        request = Request(
            inputs,
            params,
            self.model.detokeniser(),
            params.key(),
            timings or Timings(),
        )
        with self._lock:
            self._waiting.append(request)
        return request

    def stream(self, request: Request) -> Iterator[str]:
        """The text of `request`, piece by piece, driving the engine as needed."""
        try:
            while request.pieces or not request.done:
                if request.pieces:
                    yield request.pieces.popleft()
                else:
                    self.step()
            request.result()
        finally:
            self.cancel(request)

    def run(self, requests: Sequence[Request]) -> list[Generation]:
        """Drive the engine until all of `requests` are finished."""
        try:
            while any(not request.done for request in requests):
                self.step()
            return [request.result() for request in requests]
        finally:
            for request in requests:
                self.cancel(request)

    def cancel(self, request: Request) -> None:
        """Forget `request`, wherever it is; harmless when it has ended."""
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
            if request in self._running:
                self._running.remove(request)
            self._release(request)

    # Steps

    @torch.inference_mode()
    def step(self) -> None:
        """One forward pass for everything that is running; admits what is waiting first."""
        with self._lock, torch.cuda.device_of(self.model.language_model.lm_head.weight):
            try:
                self._admit()
                batch = self._schedule()
                if batch:
                    self._forward(batch)
            except BaseException as error:
                # Half-written states cannot be continued: everyone aboard learns why, and the engine stays usable.
                for request in self._running:
                    request.error = error
                raise
            finally:
                for request in [r for r in self._running if r.done]:
                    self._running.remove(request)
                    self._release(request)

    def _admit(self) -> None:
        """Give slots and pages to waiting requests and turn their prompts into embeddings."""
        if self._waiting and not self._running:
            self._follow_model()
        admitted: list[Request] = []
        while self._waiting and len(self._running) < self.config.max_batch_size:
            request = self._waiting[0]
            tokens = request.prompt_tokens + request.params.max_new_tokens
            cache = self._cache_for(tokens)
            request.slot = cache.acquire()
            try:
                cache.reserve(request.slot, tokens)
            except CacheFull:
                self._release(request)
                break
            self._waiting.popleft()
            self._running.append(request)
            admitted.append(request)
        if admitted:
            self._embed(admitted)

    def _follow_model(self) -> None:
        """Between generations the model may have been moved, cast, or given adapters."""
        cache, model = self._cache, self.model
        if cache is not None and (cache.keys.device, cache.keys.dtype) != (model.device, model.dtype):
            self._cache = self._decode = None
        if self._decode is not None:
            self._decode.refresh()

    def _cache_for(self, tokens: int) -> HybridCache:
        """The cache, made on first use and remade larger when one request alone would not fit."""
        pages = -(-tokens // self.config.page_size)
        if self._cache is None or (pages > self._pages and not self._running):
            self._pages = max(pages, self._pages)
            self._cache = self._decode = None  # frees the old one before the new one is allocated
            recorder = self._recorder()
            self._cache = HybridCache(
                self.model.language_model.config,
                slots=self.config.max_batch_size,
                pages=self._pages,
                page_size=self.config.page_size,
                device=self.model.device,
                dtype=self.model.dtype,
                scratch=recorder is not None,
            )
            self._decode = DecodeStep(self.model.language_model, self._cache, recorder)
        return self._cache

    def _recorder(self) -> Recorder | None:
        """Makes graphs of the decode step where there are such things."""
        return GraphRecorder(self.model.device) if self.model.device.type == "cuda" else None

    def _embed(self, requests: list[Request]) -> None:
        """Prompt embeddings of several requests, their images in one call of the vision encoder."""
        start = time.perf_counter()
        inputs = [request.inputs for request in requests]
        embeds = self.model.embed(
            torch.cat([i.input_ids for i in inputs]),
            torch.cat([i.tiles for i in inputs]),
            [grid for i in inputs for grid in i.grids],
            self._vision_graphs,
        )
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        elapsed = time.perf_counter() - start
        for request, part in zip(requests, embeds.split([r.prompt_tokens for r in requests]), strict=True):
            request.embeds = part
            request.timings.vision = elapsed if request.inputs.grids else 0.0
            request.start_prefill()

    def _schedule(self) -> list[tuple[Request, int]]:
        """Which sequences run in this step, and how many tokens of each."""
        budget = self.config.prefill_tokens
        batch: list[tuple[Request, int]] = []
        for request in self._running:
            if not request.prefilling:
                batch.append((request, 1))
            elif budget > 0:
                tokens = min(budget, request.prompt_tokens - request.computed)
                budget -= tokens
                batch.append((request, tokens))
        return batch

    def _forward(self, batch: list[tuple[Request, int]]) -> None:
        """Run the batch, and hand every sequence whose prompt is read its next token."""
        assert self._decode is not None
        if all(not request.prefilling for request, _ in batch):
            writers = [request for request, _ in batch]
            tokens = self._decode(writers)
            for request in writers:
                request.computed += 1
        else:
            writers, tokens = self._prefill(batch)
        for request, token_id in zip(writers, tokens, strict=True):
            request.push(token_id, self.model.end_ids)

    def _prefill(self, batch: list[tuple[Request, int]]) -> tuple[list[Request], list[int]]:
        """One pass over prompts, and over the last tokens of what is being written meanwhile."""
        model, device = self.model.language_model, self.model.device
        packed = Packed.of(
            [tokens for _, tokens in batch],
            past=[request.computed for request, _ in batch],
            slots=[request.slot for request, _ in batch if request.slot is not None],
            device=device,
        )
        rows = [i for i, (request, tokens) in enumerate(batch) if request.computed + tokens >= request.prompt_tokens]
        ends = torch.tensor([packed.starts[i] + packed.lengths[i] - 1 for i in rows], dtype=torch.int64, device=device)
        hidden = model(self._step_embeds(batch), packed, self._cache)  # [tokens, hidden]
        for request, tokens in batch:
            request.computed += tokens
            if not request.prefilling:
                request.embeds = None
        if not rows:
            return [], []
        logits = model.logits(hidden[ends])  # [writers, vocab]
        writers = [batch[i][0] for i in rows]
        params = [writer.params for writer in writers]
        sampling = SamplingRows.of(params, [w.key for w in writers], [w.computed for w in writers], logits)
        return writers, sample(logits, sampling, max(p.draw for p in params)).tolist()

    def _step_embeds(self, batch: list[tuple[Request, int]]) -> Tensor:
        """Inputs of one packed pass: the next prompt chunk, or the embedding of the last token. `[tokens, hidden]`."""
        last = [request.token_ids[-1] for request, _ in batch if request.token_ids]
        written = iter(
            self.model.language_model.embed(torch.tensor(last, dtype=torch.int64, device=self.model.device)).split(1)
        )
        parts = []
        for request, tokens in batch:
            if request.embeds is None:
                parts.append(next(written))
            else:
                parts.append(request.embeds[request.computed : request.computed + tokens])
        return torch.cat(parts)

    def _release(self, request: Request) -> None:
        if request.slot is not None and self._cache is not None:
            self._cache.release(request.slot)
        request.slot = None
        request.embeds = None
