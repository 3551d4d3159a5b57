"""An engine for coroutines: one thread steps it, whoever waits.

The thread alone queues, steps and cancels, so no event loop ever waits for a step. What a step has brought is handed to
the loops of those who wait, all of one loop's at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from preprocessing import Inputs
from vl.engine.request import Request
from vl.engine.results import Generation, Timings, TokenLogprob
from vl.engine.sampling import SamplingParams
from vl.errors import DeviceError


class Stepped(Protocol):
    """What is driven: a `vl.engine.Engine`, over one device or several."""

    def prepare(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request: ...
    def enqueue(self, requests: Sequence[Request]) -> None: ...
    def step(self) -> None: ...
    def cancel(self, request: Request) -> None: ...
    def stay_in_process(self) -> None: ...


@dataclass(frozen=True)
class Delta:
    """What a request has got since the last one.

    Attributes:
        text: may lag behind the tokens. `reasoning`: text of what was thought before the answer.
        logprobs: of the tokens, if they were asked for.
        done: it is the last one.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    done: bool
    reasoning: str = ""


@dataclass(eq=False)
class _Waiter:
    """Who waits for a request, and how many of its tokens, and characters of what it thought, they were told of."""

    request: Request
    loop: asyncio.AbstractEventLoop
    deltas: asyncio.Queue[Delta] = field(default_factory=asyncio.Queue)
    told: int = 0
    told_reasoning: int = 0

    def take(self) -> Delta | None:
        """What is new; None if nothing is. Another thread may be in a step: that it is done is looked at first."""
        request = self.request
        done, ids, pieces = request.done, request.token_ids[self.told :], request.pieces
        logprobs = request.logprobs[self.told : self.told + len(ids)]
        self.told += len(ids)
        text = "".join(pieces.popleft() for _ in range(len(pieces)))
        reasoning = request.reasoning[self.told_reasoning :]
        self.told_reasoning += len(reasoning)
        return Delta(text, ids, logprobs, done, reasoning) if text or reasoning or ids or done else None


class AsyncEngine:
    """Answers requests of coroutines, of any number of event loops, by one thread that steps `engine`.

    The thread rests while nobody waits. Other threads may use the engine meanwhile: each step serves all. A coroutine
    that is cancelled, or closes what `stream` or `follow` gave it, frees the slot and pages of its request as soon as
    the step is over that runs then.

    Args:
        engine: `model.engine`.
    """

    def __init__(self, engine: Stepped) -> None:
        self._engine = engine
        self._driver = _Driver(engine)

    async def generate(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Generation:
        """Continue one prompt. Raises as `Engine.prepare` does, and what the generation has failed of."""
        request = await self.prepare(inputs, params, timings)
        async with aclosing(self.follow(request)) as deltas:
            async for _ in deltas:
                pass
        return request.result()

    async def stream(
        self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None
    ) -> AsyncGenerator[str, None]:
        """The text piece by piece; all of them joined are that of `generate`, and it raises the same."""
        request = await self.prepare(inputs, params, timings)
        async with aclosing(self.follow(request)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield delta.text

    async def prepare(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """`Engine.prepare` in another thread: long prompts are checked for milliseconds. Nothing is queued yet."""
        return await asyncio.to_thread(self._engine.prepare, inputs, params, timings)

    async def follow(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Queue what was prepared. Ends when it is done; raises what it failed of.

        Raises DeviceError if this engine was closed, or the process was forked from the one that it was made in.
        """
        waiter = _Waiter(request, asyncio.get_running_loop())
        self._driver.add(waiter)
        try:
            while not (delta := await waiter.deltas.get()).done:
                yield delta
            if request.error is not None:
                raise request.error
            yield delta
        finally:
            self._driver.remove(waiter)

    async def close(self) -> None:
        """End the thread, after the step that it is in; requests that are left fail. Harmless when it is closed."""
        await asyncio.to_thread(self._driver.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Driver:
    """The thread. It works while anybody waits, and is a pool's, which ends it with the process."""

    def __init__(self, engine: Stepped) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(1, "vl-driver")
        self._lock = threading.Lock()  # of the next four
        self._new: list[_Waiter] = []  # not queued yet
        self._gone: list[_Waiter] = []  # not cancelled yet
        self._works = self._stopped = False
        self._waiters: dict[_Waiter, None] = {}  # the thread's own: queued, in the order of coming

    def add(self, waiter: _Waiter) -> None:
        self._engine.stay_in_process()
        with self._lock:
            if self._stopped:
                raise _closed()
            self._new.append(waiter)
            self._wake()

    def remove(self, waiter: _Waiter) -> None:
        """Harmless when it has ended."""
        if waiter.request.done:
            return
        with self._lock:
            self._gone.append(waiter)
            self._wake()

    def close(self) -> None:
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._wake()
        self._pool.shutdown()

    def _wake(self) -> None:
        if not self._works:
            self._works = True
            self._pool.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                new, self._new = self._new, []
                gone, self._gone = self._gone, []
                self._works = bool(self._waiters or new or gone)
                if not self._works:
                    return
            self._waiters |= dict.fromkeys(new)
            try:
                if self._stopped:
                    raise _closed()
                self._turn([waiter.request for waiter in new], gone)
            except Exception as error:  # not of one request: none of them can go on
                self._fail(error)

    def _turn(self, new: Sequence[Request], gone: Sequence[_Waiter]) -> None:
        self._engine.enqueue(new)
        self._cancel(gone)
        if self._waiters:
            self._engine.step()
        self._deliver()

    def _cancel(self, gone: Sequence[_Waiter]) -> None:
        for waiter in gone:
            self._waiters.pop(waiter, None)
            self._engine.cancel(waiter.request)

    def _fail(self, error: Exception) -> None:
        waiters = list(self._waiters)
        for waiter in waiters:
            if not waiter.request.done:
                waiter.request.error = error
        self._deliver()
        with suppress(Exception):  # of an engine that is broken
            self._cancel(waiters)

    def _deliver(self) -> None:
        """Hand over what is new, waking each loop once."""
        found: defaultdict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Delta]]] = defaultdict(list)
        for waiter in list(self._waiters):
            delta = waiter.take()
            if delta is not None:
                found[waiter.loop].append((waiter, delta))
                if delta.done:
                    del self._waiters[waiter]
        for loop, deltas in found.items():
            try:
                loop.call_soon_threadsafe(_hand_over, deltas)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._cancel([waiter for waiter, _ in deltas])


def _hand_over(deltas: Sequence[tuple[_Waiter, Delta]]) -> None:
    for waiter, delta in deltas:
        waiter.deltas.put_nowait(delta)


def _closed() -> DeviceError:
    return DeviceError("this AsyncEngine was closed: make another one of the model's engine")
