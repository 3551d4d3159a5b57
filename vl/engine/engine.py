"""The engine: requests in, tokens out, many at a time.

Every step is one packed forward pass over a chunk of the prompts being read and one token of every sequence being
written; where no prompt is left to read, it is the decode step. Any thread that waits for its own request may drive a
step, which serves the requests of other threads too. What goes wrong with a request ends that request alone.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from preprocessing import Inputs
from vl.engine import memory
from vl.engine.boundaries import boundaries
from vl.engine.config import EngineConfig
from vl.engine.driven import Model
from vl.engine.graphs import GraphRecorder, Recorder
from vl.engine.images import ImageFeatures
from vl.engine.prefix import Pages, PrefixCounts, Prefixes
from vl.engine.prompt import Prompt
from vl.engine.reading import Progress, Watch
from vl.engine.request import Request
from vl.engine.results import Generation, Timings
from vl.engine.runner import Runner
from vl.engine.sampling import SamplingParams
from vl.engine.scheduler import Memory, NoBeginnings, Scheduler
from vl.engine.vision_graphs import VisionGraphs
from vl.errors import DeviceError, InputError

MARKS = 8  # of a prompt at most: each is a copy of all states
_HASHING = ThreadPoolExecutor(2, "vl-digests")


class Cache(Memory, Pages, Protocol):
    """What the requests' slots and pages are taken from. `pages`: all of them; `nbytes`: memory that it takes here."""

    @property
    def pages(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Steps(Protocol):
    """What runs steps over a cache: `vl.engine.runner.Runner`, or what has others run them."""

    @property
    def cache(self) -> Cache: ...
    def follow(self) -> bool: ...
    def changed(self) -> bool: ...
    def __call__(
        self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]
    ) -> list[tuple[Request, int]]: ...


class Engine:
    """Continuous batching over one hybrid cache.

    A copy (`copy.deepcopy`, `pickle`) has the model's copy and the config, and nothing of what was queued or cached.

    Args:
        model: what the engine drives.
        config: how much it takes on at once.

    Attributes:
        scheduler: who waits and who runs.
        runner: does the steps, over a cache that is made when the first request comes.
        prefixes: what that cache keeps of prompts, for the next ones that begin the same way.
        counts: of prompts, by whether their beginnings were kept.

    Raises:
        ConfigError: if the model's device could never hold the cache.
    """

    def __init__(self, model: Model, config: EngineConfig | None = None) -> None:
        self.model = model
        self.config = config or EngineConfig()
        memory.check_prefixes(model.config.text, self.config)
        self._check_config()
        self._start()

    def _start(self) -> None:
        config = self.config
        self.scheduler = Scheduler[Request](config.max_batch_size, config.prefill_tokens, config.mixed_tokens or None)
        self.runner: Steps | None = None
        self.prefixes: Prefixes | None = None
        self.counts = PrefixCounts()
        self._vision_graphs, self._images = VisionGraphs(), ImageFeatures(self.config.image_memory * memory.MIB)
        self._lock = threading.RLock()
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    # Requests

    def check(self, params: SamplingParams, prompt: int = 1) -> None:
        """Raises InputError if no prompt of `prompt` tokens could be answered so: said once, not for each of many."""
        self._check_room(prompt, params.max_new_tokens)

    def prepare(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """Check all of a prompt. Nothing is queued yet: `stream` and `run` do that.

        Raises:
            InputError: if the prompt is not one for this model, or the memory could not hold it and what is asked for.
            DeviceError: if this process was forked from one that uses the engine.
        """
        self.stay_in_process()
        if not isinstance(params, SamplingParams):
            raise InputError(f"params must be SamplingParams, not {type(params).__name__}")
        prompt = Prompt.of(inputs, self.model.config, self.model.name)
        places = memory.places(self.model.config.text, self.config)
        if places or self.config.image_memory:
            _HASHING.submit(getattr, prompt, "digests")  # so that they are there, mostly, when a step asks for them
        request = Request(
            prompt_tokens=len(prompt),
            max_new_tokens=params.max_new_tokens,
            prompt=prompt,
            params=params,
            stream=self.model.detokeniser(),
            key=params.key(),
            priority=params.priority,
            boundaries=boundaries(prompt, self.model.end_ids, min(MARKS, -(-places // 4))),
            timings=timings or Timings(),
        )
        self._check_room(request.prompt_tokens, request.max_new_tokens)
        return request

    def submit(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """`prepare` a prompt and queue it: it starts when its turn comes, first come first served."""
        request = self.prepare(inputs, params, timings)
        self._queue([request])
        return request

    def _queue(self, requests: Sequence[Request]) -> None:
        self.stay_in_process()
        with self._lock:
            for request in requests:
                if request.arrival < 0:
                    self.scheduler.add(request)

    def stream(self, request: Request, progress: Progress | None = None) -> Iterator[str]:
        """The text of `request`, piece by piece, driving the engine as needed. `progress` hears how far it is read."""
        watch = Watch([request], progress)
        try:
            self._queue([request])
            while request.pieces or not request.done:
                if request.pieces:
                    yield request.pieces.popleft()
                else:
                    self.step()
                    watch()
            request.result()
        finally:
            self.cancel(request)

    def run(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Generation]:
        """Drive the engine until all of `requests` are finished, or one has failed: that raises what it failed of.

        `progress` hears how far they are read.
        """
        watch = Watch(requests, progress)
        try:
            self._queue(requests)
            for request in requests:
                while not request.done:
                    self.step()
                    watch()
                request.result()
            return [request.result() for request in requests]
        finally:
            for request in requests:
                self.cancel(request)

    def cancel(self, request: Request) -> None:
        """Forget `request`, wherever it is; harmless when it has ended."""
        if self._forked():
            return  # the parent's; and a lock that another thread held then is never given back here
        with self._lock:
            self._end(request)

    def forget(self) -> None:
        """Drop what is kept of prompts and images: for after weights were written to in a way that PyTorch misses.

        Such are writes to a tensor's `.data`. Other changes of the model are noticed.
        """
        with self._lock:
            self._images.clear()
            if self.prefixes is not None:
                self.prefixes.clear()

    @property
    def image_counts(self) -> tuple[int, int]:
        """How many images were met again and not encoded, and how many were encoded."""
        return self._images.hits, self._images.misses

    # Steps

    @torch.inference_mode()
    def step(self) -> None:
        """One forward pass for everything that is running; admits what is waiting first.

        What goes wrong with a request is its `error`, for the one who waits for it, and not raised here.

        Raises:
            DeviceError: if this process was forked from one that uses the engine.
        """
        self.stay_in_process()
        with self._lock, self._on_device():
            self._prepare()
            batch = self.scheduler.schedule()
            if not batch:
                return
            assert self.runner is not None
            assert self.prefixes is not None
            try:
                for request in self.scheduler.running:
                    request.start()
                with self.prefixes.marking(batch):
                    written = self.runner(batch, self.scheduler.running)
                for request, token_id in written:
                    self._push(request, token_id)
            except Exception as error:
                self._isolate([request for request, _ in batch], error)
            except BaseException:  # Ctrl-C: states may be half-written
                for request, _ in batch:
                    self._restart(request)
                raise

    def _push(self, request: Request, token_id: int) -> None:
        """Hand a request its next token."""
        try:
            request.push(token_id, self.model.end_ids)
            request.alone = False
        except Exception as error:  # of the detokeniser
            request.error = error
        if request.done:
            self._end(request)

    def _isolate(self, requests: Sequence[Request], error: Exception) -> None:
        """After a step failed: states may be half-written. Whose fault it was shows when each runs by itself."""
        if memory.is_exhausted(error):
            traceback.clear_frames(error.__traceback__)  # they hold what the failed pass had allocated
            self._images.clear()
        if len(requests) == 1:
            self._fail(requests[0], error)
            return
        for request in requests:
            request.alone = True
            self._restart(request)

    def _restart(self, request: Request) -> None:
        self.scheduler.preempt(request)
        request.features.clear()

    def _fail(self, request: Request, error: Exception) -> None:
        if memory.is_exhausted(error):
            told = memory.exhausted(error, self.model.device, f"working on {request.known:,} tokens")
            told.__cause__, error = error, told
        request.error = error
        self._end(request)

    def _end(self, request: Request) -> None:
        try:
            if request.error is None and self.prefixes is not None:
                self.prefixes.keep(request)  # with what it has written: a conversation's next prompt has that, too
        finally:
            self.scheduler.remove(request)
            request.features.clear()

    # The cache

    def _prepare(self) -> None:
        """Between generations, see to it that there is a cache that fits the model and the next request."""
        while self.scheduler.waiting and not self.scheduler.running:
            request = self.scheduler.waiting[0]
            try:
                self._fit_cache(request)
            except Exception as error:
                self._fail(request, error)
            else:
                return

    def _fit_cache(self, request: Request) -> None:
        """A cache as the config says, or a larger one if `request` needs it for its next token.

        Then as large as all that it may come to, but at most twice what was there: few requests write all they may.
        """
        runner, needed = self.runner, self._pages(request.upcoming)
        follows = runner is not None and runner.follow()
        if runner is not None and runner.changed() and self.prefixes is not None:
            self.prefixes.clear()
        if runner is not None and follows and needed <= runner.cache.pages:
            return
        pages = max(needed, self.config.pages)
        if runner is not None and follows:
            room, most = self._room(), self._pages(request.most)
            twice = 2 * runner.cache.pages if room is None else min(2 * runner.cache.pages, self._pages(room))
            pages = max(pages, min(most, twice))
        # Frees the old one before the new one is allocated.
        self.runner = self.prefixes = self.scheduler.memory = None
        self.scheduler.beginnings = NoBeginnings()
        self._images.clear()
        del runner
        self.runner = self._make_runner(pages)
        cache = self.scheduler.memory = self.runner.cache
        places = memory.places(self.model.config.text, self.config)
        self.prefixes = self.scheduler.beginnings = Prefixes(cache, places, self.counts)

    def _make_runner(self, pages: int) -> Steps:
        return Runner.make(self.model, self.config, pages, self._recorder(), self._vision_graphs, self._images)

    def _check_room(self, prompt: int, new: int) -> None:
        """Refuse what no cache could hold, before it waits for one."""
        if self._pages(prompt + new - 1) > self.config.pages:
            memory.check_room(self._room(), self.model.device, prompt=prompt, new=new)

    def _room(self) -> int | None:
        """Tokens that a cache could hold in place of the present one; None if that cannot be told."""
        return memory.room(self.model, self.config, self._held())

    def _held(self) -> int:
        """Bytes of the present cache, and of what is dropped with it."""
        runner = self.runner  # another thread may make a new one meanwhile
        return (runner.cache.nbytes if runner else 0) + self._images.nbytes

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.config.page_size)

    def _recorder(self) -> Recorder | None:
        """Makes graphs of the decode step where there are such things."""
        model = self.model
        captures = model.device.type == "cuda" and model.language_model.capturable
        return GraphRecorder(model.device) if captures else None

    # The device

    def _check_config(self) -> None:
        memory.check_config(self.model, self.config)

    def _on_device(self) -> AbstractContextManager[object]:
        """Steps run on the model's device, whichever is current."""
        return torch.cuda.device_of(self.model.language_model.lm_head.weight)

    # Processes

    def _forked(self) -> bool:
        return self._process not in (None, os.getpid())

    def stay_in_process(self) -> None:
        """Another thread may have been in a step when this process was forked: it would wait for it for ever."""
        if self._forked():
            raise DeviceError(
                "this process was forked from one that uses the model, whose threads and devices it does not have: "
                "load the model in it, and start it by multiprocessing's 'spawn' method"
            )
        self._process = os.getpid()
