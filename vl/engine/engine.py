"""The engine: requests in, tokens out, many at a time.

Every step is one packed forward pass over a chunk of the prompts being read and one token of every sequence being
written. Any thread that waits for its own request may drive a step; requests of other threads ride along.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from preprocessing import Inputs
from text_backbone import CacheFull, HybridCache, Packed
from vl.engine.request import Generation, Request, Timings
from vl.engine.sampling import SamplingParams, sample
from vl.errors import InputError

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


class Engine:
    """Continuous batching over one hybrid cache.

    Args:
        model: the model that the engine drives.
        max_batch_size: sequences that run at once; each holds one lightning state (`heads * head_dim^2` floats per
            lightning layer) whatever its length.
        prefill_tokens: prompt tokens read per step; longer prompts are read in chunks, which bounds memory.
        cache_tokens: capacity of the paged KV cache, in tokens over all sequences. One request that needs more grows
            the cache once the engine is idle.
        page_size: tokens per KV page.
    """

    def __init__(
        self,
        model: MiniMaxVL,
        *,
        max_batch_size: int = 16,
        prefill_tokens: int = 8192,
        cache_tokens: int = 65536,
        page_size: int = 256,
    ) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self.prefill_tokens = prefill_tokens
        self.page_size = page_size
        self._pages = -(-cache_tokens // page_size)
        self._cache: HybridCache | None = None
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._lock = threading.RLock()

    # Requests

    def request(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """Queue a prompt. It starts when a slot and its pages are free, first come first served."""
        if inputs.input_ids.numel() == 0:
            raise InputError("the prompt is empty: give at least one message")
        request = Request(
            inputs,
            params,
            self.model.processor.tokenizer.stream(),
            params.generator(self.model.device),
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
        with self._lock:
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
        admitted: list[Request] = []
        while self._waiting and len(self._running) < self.max_batch_size:
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

    def _cache_for(self, tokens: int) -> HybridCache:
        """The cache, made on first use and remade larger when one request alone would not fit."""
        pages = -(-tokens // self.page_size)
        if self._cache is None or (pages > self._pages and not self._running):
            self._pages = max(pages, self._pages)
            self._cache = None  # frees the old one before the new one is allocated
            self._cache = HybridCache(
                self.model.config.text,
                slots=self.max_batch_size,
                pages=self._pages,
                page_size=self.page_size,
                device=self.model.device,
                dtype=self.model.dtype,
            )
        return self._cache

    def _embed(self, requests: list[Request]) -> None:
        """Prompt embeddings of several requests, their images in one call of the vision encoder."""
        start = time.perf_counter()
        inputs = [request.inputs for request in requests]
        embeds = self.model.embed(
            torch.cat([i.input_ids for i in inputs]),
            torch.cat([i.tiles for i in inputs]),
            [grid for i in inputs for grid in i.grids],
        )
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        for request, part in zip(requests, embeds.split([r.prompt_tokens for r in requests]), strict=True):
            request.embeds = part
            request.timings.vision = elapsed if request.inputs.grids else 0.0
            request.start_prefill()

    def _schedule(self) -> list[tuple[Request, int]]:
        """Which sequences run in this step, and how many tokens of each."""
        budget = self.prefill_tokens
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
        model, device = self.model, self.model.device
        packed = Packed.of(
            [tokens for _, tokens in batch],
            past=[request.computed for request, _ in batch],
            slots=[request.slot for request, _ in batch if request.slot is not None],
            device=device,
        )
        hidden = model.language_model(self._step_embeds(batch), packed, self._cache)  # [tokens, hidden]
        ends = packed.offsets[1:] - 1
        for request, tokens in batch:
            request.computed += tokens
            if not request.prefilling:
                request.embeds = None
        rows = [i for i, (request, _) in enumerate(batch) if not request.prefilling]
        if not rows:
            return
        writers = [batch[i][0] for i in rows]
        logits = model.language_model.logits(hidden[ends[torch.tensor(rows, device=device)]])  # [writers, vocab]
        tokens_out = sample(logits, [w.params for w in writers], [w.generator for w in writers]).tolist()
        for request, token_id in zip(writers, tokens_out, strict=True):
            request.push(token_id, model.end_ids)

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
