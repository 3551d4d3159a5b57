"""An engine whose steps are run by ranks: who runs when is decided here, once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_backbone.allocator import Allocator
from text_backbone.parallel.layout import CACHED
from vl.engine import Engine, EngineConfig, Request
from vl.engine.choosing import Chosen
from vl.engine.driven import Model
from vl.engine.holding import Fill
from vl.engine.keeping import Steps
from vl.engine.prefix import Held
from vl.engine.warming import Rehearsal
from vl.ranks.interrupts import Interrupts
from vl.ranks.messages import Call, HeldAt, NewRequest, Step, Written
from vl.ranks.processes import Ranks


class SplitEngine(Engine):
    """`Engine` over the parts of a model that ranks hold.

    Args:
        model: what the requests are for; its weights are not read.
        ranks: the processes, each of which has checked its memory against `config`.
    """

    def __init__(self, model: Model, ranks: Ranks, config: EngineConfig) -> None:
        self._ranks = ranks
        self._mirror = _Mirror()
        super().__init__(model, config)

    @property
    def image_counts(self) -> tuple[int, int]:
        """Of the first rank; all do the same."""
        return self._ranks.call("image_counts")[0]

    @property
    def ended(self) -> str | None:
        return self._ranks.ended

    def _check_config(self) -> None:
        """Each rank has, by its own device."""

    def _on_device(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _room(self) -> int | None:
        """The least of the ranks'."""
        rooms = [room for room in self._ranks.call("room") if room is not None]
        return min(rooms, default=None)

    def _carried(self) -> Sequence[tuple[Held, Callable[[int], object]]]:
        """Each rank takes its part along."""
        held = () if self.prefixes is None else self.prefixes.held
        if held:
            self._ask("take_out", [_bare(each) for each in held])
        return [(each, partial(self._ask, "put_in", number)) for number, each in enumerate(held)]

    def _fill(self, fill: Fill, slot: int) -> None:
        """Each rank reads its part for itself."""
        self._ask("fill", fill, slot)

    def states_of(self, held: Held) -> dict[str, Tensor]:
        """As of `Engine`, put together of what the ranks have."""
        self.stay_in_process()
        with self._lock:
            self._check_held(held)
            return _joined(self._ask("states_of", _bare(held)))

    def stretch_of(self, held: Held, start: int, stop: int) -> dict[str, Tensor]:
        """As of `Engine`, put together of what the ranks have."""
        with self._lock:
            self._check_held(held)
            return _joined(self._ask("stretch_of", _bare(held), start, stop))

    def _ask(self, command: str, *args: Any) -> list[Any]:
        """Have the ranks do something with their caches, as these are by now. Files take as long as they take."""
        assert self.runner is not None
        ledger = self.runner.cache
        assert isinstance(ledger, CacheLedger)
        self._ranks.call_with("follow", lambda: (ledger.take_calls(),))
        return self._ranks.call(command, *args, timed=False)

    def _make_runner(self, pages: int) -> Steps:
        self._ranks.call("drop_cache")  # of every rank, before any makes a new one
        self._ranks.call("make_cache", pages)
        cache = CacheLedger(self.config.max_batch_size, pages, self.config.page_size)
        return RanksRunner(self._ranks, cache, self._mirror)

    def _release(self) -> None:
        super()._release()
        held = () if self.prefixes is None else self.prefixes.held
        self._ranks.call("release", [each.place for each in held])

    def _end(self, request: Request) -> None:
        super()._end(request)
        self._mirror.end(request)


def _bare(held: Held) -> HeldAt:
    return held.tokens, held.place, held.pages


def _joined(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a whole cache, of which each rank has some, or of each some heads."""
    parts = defaultdict[str, list[Tensor]](list)
    for rank in found:
        for name, tensor in rank.items():
            parts[name].append(tensor)
    dims = ((name, CACHED[name.rpartition(".")[2]]) for name in parts)
    return {name: parts[name][0] if len(parts[name]) == 1 else torch.cat(parts[name], dim) for name, dim in dims}


class CacheLedger(Allocator):
    """The slots and pages of every rank's cache, which do later what was done here.

    States that are kept at a place (`keep`, `recall`) are kept by each rank: its part of them.

    Attributes:
        calls: that the ranks have not heard of: name, arguments and, of `acquire`, the slot got.
    """

    nbytes = 0  # here; the ranks know what they hold

    def __init__(self, slots: int, pages: int, page_size: int) -> None:
        super().__init__(slots, pages, page_size)
        self.calls: list[Call] = []

    def acquire(self) -> int:
        with Interrupts():
            slot = super().acquire()
            self.calls.append(("acquire", (), slot))
        return slot

    def reserve(self, slot: int, tokens: int) -> list[int]:
        with Interrupts():
            new = super().reserve(slot, tokens)
            if new:
                self._tell("reserve", slot, tokens)
        return new

    def release(self, slot: int) -> None:
        with Interrupts():
            super().release(slot)
            self._tell("release", slot)

    def share(self, slot: int, pages: Sequence[int], tokens: int) -> list[int]:
        with Interrupts():
            calls = len(self.calls)
            new = super().share(slot, pages, tokens)
            del self.calls[calls:]  # the `reserve` that is part of it
            self._tell("share", slot, tuple(pages), tokens)
        return new

    def retain(self, pages: Sequence[int]) -> None:
        with Interrupts():
            super().retain(pages)
            self._tell("retain", tuple(pages))

    def drop(self, pages: Sequence[int]) -> None:
        with Interrupts():
            super().drop(pages)
            self._tell("drop", tuple(pages))

    def keep(self, slot: int, place: int) -> None:
        """As of `HybridCache`."""
        self._tell("keep", slot, place)

    def recall(self, slot: int, place: int) -> None:
        """As of `HybridCache`."""
        self._tell("recall", slot, place)

    def take_calls(self) -> list[Call]:
        """What the ranks have to hear of; they are about to."""
        calls, self.calls = self.calls, []
        return calls

    def _tell(self, name: str, *args: int | tuple[int, ...]) -> None:
        self.calls.append((name, args, None))


class _Mirror:
    """What the ranks know of the requests. `numbers`: of those that they have heard of and that go on."""

    def __init__(self) -> None:
        self.numbers: dict[Request, int] = {}
        self._heard: dict[Request, int] = {}  # of how many written tokens
        self._ended: list[int] = []
        self._next = 0

    def end(self, request: Request) -> None:
        """It is over; harmless if the ranks have never heard of it."""
        if request in self.numbers:
            self._ended.append(self.numbers.pop(request))
            del self._heard[request]

    def step(self, batch: Sequence[tuple[Request, int]], running: Sequence[Request], cache: CacheLedger) -> Step:
        """What to tell the ranks of a step."""
        new = [self._introduce(request) for request in running if request not in self.numbers]
        written = []
        for request, _ in batch:
            written.append(request.token_ids[self._heard[request] :])
            self._heard[request] = len(request.token_ids)
        step = Step(
            memory=cache.take_calls(),
            ended=self._ended,
            new=new,
            batch=[self.numbers[request] for request, _ in batch],
            tokens=[tokens for _, tokens in batch],
            slots=[request.slot for request, _ in batch if request.slot is not None],
            computed=[request.computed for request, _ in batch],
            written=written,
            marks=[request.marks for request, _ in batch],
            running=[self.numbers[request] for request in running],
        )
        self._ended = []
        return step

    def _introduce(self, request: Request) -> NewRequest:
        self.numbers[request], self._heard[request] = self._next, 0
        self._next += 1
        return NewRequest(self.numbers[request], request.prompt, request.params, request.key)


class RanksRunner:
    """`vl.engine.runner.Runner` over the parts that ranks hold.

    What counts are the tokens that the first rank has chosen: the others hear of them with the next step.
    """

    def __init__(self, ranks: Ranks, cache: CacheLedger, mirror: _Mirror) -> None:
        self.cache = cache
        self._ranks, self._mirror = ranks, mirror

    def fits(self) -> bool:
        """A model that is split stays where it is."""
        return True

    def changed(self) -> bool:
        """Nor can it be trained."""
        return False

    def rehearse(self, part: Rehearsal) -> None:
        self._ranks.call("rehearse", part)

    def __call__(
        self, batch: Sequence[tuple[Request, int]], running: Sequence[Request]
    ) -> list[tuple[Request, Chosen]]:
        """As `Runner`'s. Raises Exhausted, which is a MemoryError, if a rank had too little for its part."""
        written: Written = self._ranks.call_with("step", lambda: (self._mirror.step(batch, running, self.cache),))[0]
        requests = {self._mirror.numbers[request]: request for request, _ in batch}
        for request, tokens in batch:
            request.computed += tokens
        for number, seconds in written.vision.items():
            requests[number].watches.append(partial(float, seconds))
        return [(requests[number], chosen) for number, chosen in written.tokens]
