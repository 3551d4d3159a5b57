"""What an engine keeps: its cache, which grows as needed, and what is held in it.

Nothing runs while a cache is replaced. What is held goes along to the new one, by way of the host.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from preprocessing.kept import KeptImages
from text_backbone import HybridCache
from vl.engine import memory
from vl.engine.choosing import Chosen
from vl.engine.config import EngineConfig
from vl.engine.driven import Model
from vl.engine.graphs import GraphRecorder, Recorder
from vl.engine.holding import Fill, named_states, named_stretch, take_out
from vl.engine.images import ImageFeatures
from vl.engine.prefix import Held, Pages, PrefixCounts, Prefixes
from vl.engine.request import Request
from vl.engine.runner import Runner
from vl.engine.scheduler import Memory, NoBeginnings, Scheduler, rank
from vl.engine.structured import Forms
from vl.engine.vision_graphs import VisionGraphs
from vl.engine.warming import Rehearsal
from vl.errors import InputError

CHANGED = "the model has changed since"


class Cache(Memory, Pages, Protocol):
    """What the requests' slots and pages are taken from. `slots`, `pages`: all of them; `nbytes`: memory taken here."""

    @property
    def slots(self) -> int: ...
    @property
    def free_slots(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Steps(Protocol):
    """What runs steps over a cache: `vl.engine.runner.Runner`, or what has others run them."""

    @property
    def cache(self) -> Cache: ...
    def fits(self) -> bool: ...
    def changed(self) -> bool: ...
    def rehearse(self, part: Rehearsal) -> None: ...
    def __call__(
        self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]
    ) -> list[tuple[Request, Chosen]]: ...


class Keeping(ABC):
    """The cache of an engine over its model; arguments and errors as of `vl.engine.Engine`.

    Attributes:
        scheduler: who waits and who runs.
        runner: does the steps, over a cache that is made when the first request comes.
        prefixes: what that cache keeps of prompts, for the next ones that begin the same way.
        counts: of prompts, by whether their beginnings were kept.
        kept_images: files of images, as they were cut; None: there are none.
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
        self._forms = Forms(self.model)
        self._vision_graphs, self._images = VisionGraphs(), ImageFeatures(config.image_memory * memory.MIB)
        self.kept_images = KeptImages(config.tile_memory * memory.MIB) if config.tile_memory else None
        # Not of all engines: in a forked process there is none of its threads, and what it is given would pile up.
        self._hashing = ThreadPoolExecutor(2, "vl-digests")
        self._dropped: deque[Held] = deque()
        self._lock = threading.RLock()
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    @abstractmethod
    def step(self) -> None:
        """One forward pass for everything that is running; admits what is waiting first."""

    @abstractmethod
    def stay_in_process(self) -> None:
        """Raises DeviceError if this process was forked from one that uses the engine."""

    def forget(self) -> None:
        """Drop what is kept of prompts and images: for after weights were written to in a way that PyTorch misses.

        Such are writes to a tensor's `.data`. Other changes of the model are noticed.
        """
        with self._lock:
            self._images.clear()
            if self.prefixes is not None:
                self.prefixes.clear()
                self.prefixes.lose(CHANGED)

    @property
    def image_counts(self) -> tuple[int, int]:
        """How many images were met again and not encoded, and how many were encoded."""
        return self._images.hits, self._images.misses

    @property
    def ended(self) -> str | None:
        """Why this engine answers no more; None while it does. One in this process always does."""
        return None

    # What is held

    def let_go(self, held: Held) -> None:
        """Hold something no more, from the next step on after which no request begins with it.

        May be called by a finaliser, in any thread at any time.
        """
        held.wanted = False
        self._dropped.append(held)

    @torch.inference_mode()
    def adopt(self, tokens: int, fill: Fill) -> Held:
        """Hold a beginning of `tokens` tokens that was read elsewhere. What runs ends first, and what waits waits.

        Args:
            fill: gives a slot of a cache, which has room for the tokens, its states, keys and values.
        """
        self.stay_in_process()
        with self._lock, self._on_device():
            waiting, self.scheduler.waiting = self.scheduler.waiting, []
            try:
                while self.scheduler.running or self.scheduler.waiting:
                    self.step()
                self._check_room(tokens, 1)
                self._fit_cache(tokens, tokens, None)
                return self._settle(tokens, partial(self._fill, fill))
            finally:
                for request in waiting:
                    insort(self.scheduler.waiting, request, key=rank)

    def _settle(self, tokens: int, fill: Callable[[int], object], held: Held | None = None) -> Held:
        """Have a beginning in the cache, in which nothing runs, and hold it."""
        runner, prefixes = self.runner, self.prefixes
        assert runner is not None
        assert prefixes is not None
        cache = runner.cache
        slot = cache.acquire()
        try:
            while cache.free_pages < self._pages(tokens) and prefixes.evict():
                pass
            cache.reserve(slot, tokens)
            fill(slot)
            return prefixes.hold(slot, tokens, held)
        finally:
            cache.release(slot)

    def _fill(self, fill: Fill, slot: int) -> None:
        fill(self._cache(), slot)

    @torch.inference_mode()
    def states_of(self, held: Held) -> dict[str, Tensor]:
        """The states of what is held, by layer, on the host. Raises InputError if it is lost."""
        self.stay_in_process()
        with self._lock, self._on_device():
            self._check_held(held)
            return named_states(self._cache(), held)

    @torch.inference_mode()
    def stretch_of(self, held: Held, start: int, stop: int) -> dict[str, Tensor]:
        """The keys and values of the tokens between two numbers, by layer, on the host. Raises as `states_of`."""
        with self._lock, self._on_device():
            self._check_held(held)
            return named_stretch(self._cache(), held, start, stop)

    def _check_held(self, held: Held) -> None:
        if not self.scheduler.running:
            self._follows()
        if held.lost:
            raise InputError(f"what was read before is gone ({held.lost}): read it again")

    def _cache(self) -> HybridCache:
        assert self.runner is not None
        assert isinstance(self.runner.cache, HybridCache)
        return self.runner.cache

    def _carried(self) -> Sequence[tuple[Held, Callable[[int], object]]]:
        """What is held, copied out of a cache that is about to go, and what gives it to a slot of the next one."""
        held = () if self.prefixes is None else self.prefixes.held
        return [(each, partial(self._fill, take_out(self._cache(), each))) for each in held]

    # The cache

    def _fit_cache(self, upcoming: int, most: int, after: Held | None) -> None:
        """A cache as the config says, or a larger one if a sequence needs it for its next token: `upcoming` in all.

        Then as large as all that it may come to, `most` tokens, but at most twice what was there: few requests write
        all they may. What is held has its pages beside that, but for those that the sequence begins with, `after`.
        """
        runner, follows = self.runner, self._follows()
        beside = self._beside(after)
        needed = beside + self._pages(upcoming)
        if runner is not None and follows and needed <= runner.cache.pages:
            return
        pages = max(needed, self.config.pages)
        if runner is not None and follows:
            room, twice = self._room(), 2 * runner.cache.pages
            twice = twice if room is None else min(twice, self._pages(room))
            pages = max(pages, min(beside + self._pages(most), twice))
        carried = self._carried()
        before = 0 if runner is None else runner.cache.pages
        del runner
        try:
            self._make_cache(pages)
        except Exception:
            if not carried:
                raise
            self._make_cache(before)
            raise
        finally:
            for held, fill in carried:
                self._settle(held.tokens, fill, held)

    def _follows(self) -> bool:
        """Whether there is a cache that fits the model. What was kept before the model changed is lost."""
        runner, prefixes = self.runner, self.prefixes
        fits = runner is not None and runner.fits()
        if runner is not None and prefixes is not None and (runner.changed() or not fits):
            prefixes.clear()
            prefixes.lose(CHANGED)
        return fits

    def _release(self) -> None:
        """Give back memory that nobody needs: of the device, and what is kept of prompts on the host."""
        self._images.clear()
        if self.prefixes is not None:
            self.prefixes.clear("evicted")
            if self.runner is not None and isinstance(self.runner.cache, HybridCache):
                self.runner.cache.places.keep([held.place for held in self.prefixes.held])
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_cache(self, pages: int) -> None:
        # Frees the old one before the new one is allocated.
        self.runner = self.prefixes = self.scheduler.memory = None
        self.scheduler.beginnings = NoBeginnings()
        self._images.clear()
        self.runner = self._make_runner(pages)
        cache = self.scheduler.memory = self.runner.cache
        places = memory.places(self.model.config.text, self.config)
        self.prefixes = self.scheduler.beginnings = Prefixes(cache, places, self.counts)

    def _make_runner(self, pages: int) -> Steps:
        return Runner.make(self.model, self.config, pages, self._recorder(), self._vision_graphs, self._images)

    def _check_room(self, prompt: int, new: int, after: Held | None = None) -> None:
        """Refuse what no cache could hold, before it waits for one."""
        beside = self._beside(after, staying=True)
        if beside + self._pages(prompt + new - 1) > self.config.pages:
            room = self._room()
            room = None if room is None else max(0, room - beside * self.config.page_size)
            memory.check_room(room, self.model.device, prompt=prompt, new=new)

    def _beside(self, after: Held | None, staying: bool = False) -> int:
        prefixes = self.prefixes  # another thread may make new ones meanwhile
        return 0 if prefixes is None else prefixes.pages_beside(after, staying)

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
