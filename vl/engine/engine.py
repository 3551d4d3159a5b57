"""The engine: requests in, tokens out, many at a time.

Every step is one packed forward pass over a chunk of the prompts being read and one token of every sequence being
written; where no prompt is left to read, it is the decode step. Any thread that waits for its own request may drive a
step, which serves the requests of other threads too. What goes wrong with a request ends that request alone.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from preprocessing import Inputs
from vl.engine import memory
from vl.engine.boundaries import boundaries
from vl.engine.choosing import Chosen
from vl.engine.keeping import Keeping
from vl.engine.params import SamplingParams
from vl.engine.prefix import Held
from vl.engine.prompt import Prompt
from vl.engine.reading import Progress, Watch
from vl.engine.request import Request
from vl.engine.results import Generation, Timings, TokenLogprob
from vl.engine.warming import Rehearsal, rehearsals
from vl.errors import DeviceError, InputError

MARKS = 8  # of a prompt at most: each is a copy of all states


class Engine(Keeping):
    """Continuous batching over one hybrid cache.

    A copy (`copy.deepcopy`, `pickle`) has the model's copy and the config, and nothing of what was queued or cached.

    Args:
        model: what the engine drives.
        config: how much it takes on at once.

    Raises:
        ConfigError: if the model's device could never hold the cache.
    """

    # Requests

    def check(self, params: SamplingParams, prompt: int = 1) -> None:
        """Raises InputError if no prompt of `prompt` tokens could be answered so: said once, not for each of many."""
        self._check_biases(params)
        self._forms.of(params)
        self._check_room(prompt, params.max_new_tokens)

    def _check_biases(self, params: SamplingParams) -> None:
        size = self.model.config.text.vocab_size
        if params.logit_bias and max(params.logit_bias) >= size:
            raise InputError(f"logit_bias names token {max(params.logit_bias)}, but the vocabulary ends at {size - 1}")

    def prepare(
        self,
        inputs: Inputs | Prompt,
        params: SamplingParams,
        timings: Timings | None = None,
        *,
        after: Held | None = None,
        hold: bool = False,
    ) -> Request:
        """Check all of a prompt. Nothing is queued yet: `stream` and `run` do that.

        Args:
            after: what the prompt begins with, if that is held.
            hold: hold what was read when it has ended: `Request.held`.

        Raises:
            InputError: if the prompt is not one for this model, or the memory could not hold it and what is asked for.
            DeviceError: if this process was forked from one that uses the engine.
        """
        self.stay_in_process()
        if not isinstance(params, SamplingParams):
            raise InputError(f"params must be SamplingParams, not {type(params).__name__}")
        if params.n > 1:
            raise InputError(f"n={params.n} answers are for generate, which returns them all: leave n out here")
        self._check_biases(params)
        prompt = inputs if isinstance(inputs, Prompt) else Prompt.of(inputs, self.model.config, self.model.name)
        if (self._marks() or self.config.image_memory) and not prompt.hashed:
            # So that they are there, mostly, when a step asks for them.
            self._hashing.submit(getattr, prompt, "digests")
        request = Request(
            prompt_tokens=len(prompt),
            max_new_tokens=params.max_new_tokens,
            prompt=prompt,
            params=params,
            stream=self.model.detokeniser(),
            key=params.key(),
            priority=params.priority,
            timings=timings or Timings(),
            after=after,
            hold=hold,
            markers=self.model.processor.reasoning,
            form=self._forms.of(params),
        )
        if after is None and not hold:
            request.boundaries = boundaries(prompt, self.model.end_ids, self._marks())
        self._check_room(request.prompt_tokens, request.max_new_tokens, after)
        if after is not None:
            after.users.add(request)
        return request

    def _marks(self) -> int:
        """Places of a prompt at which what was read may be kept."""
        return min(MARKS, -(-memory.places(self.model.config.text, self.config) // 4))

    def prepare_answers(
        self,
        inputs: Inputs | Prompt,
        params: SamplingParams,
        timings: Timings | None = None,
        *,
        after: Held | None = None,
    ) -> list[Request]:
        """`prepare` the `params.n` answers to one prompt, of which the first to run reads it for all, but a token.

        They are requests like any others, and may end, fail or be cancelled each by itself.
        """
        prompt = inputs if isinstance(inputs, Prompt) else Prompt.of(inputs, self.model.config, self.model.name)
        requests = []
        for index in range(params.n):
            request = self.prepare(prompt, params.one(index), replace(timings or Timings()), after=after)
            request.index = index
            requests.append(request)
        last, most = len(prompt) - 1, self._marks()
        if params.n > 1 and after is None and last and most:
            ends = (*[at for at in requests[0].boundaries if at < last][: most - 1], last)
            siblings = object()
            for request in requests:
                request.siblings, request.boundaries = siblings, ends
        return requests

    def submit(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request:
        """`prepare` a prompt and queue it: it starts when its turn comes, first come first served."""
        request = self.prepare(inputs, params, timings)
        self.enqueue([request])
        return request

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Queue what was prepared; harmless where that is queued. Raises DeviceError in a forked process."""
        self.stay_in_process()
        with self._lock:
            for request in requests:
                if request.arrival < 0:
                    self.scheduler.add(request)

    def stream(self, request: Request, progress: Progress | None = None) -> Iterator[str]:
        """The text of `request`, piece by piece, driving the engine as needed. `progress` hears how far it is read."""
        watch = Watch([request], progress)
        try:
            self.enqueue([request])
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
            self.enqueue(requests)
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

    def warm_up(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Do once what first requests would wait for: compile kernels, record graphs, take the cache's memory.

        On a GPU that takes a minute or so the first time, and less once compiled kernels are on the disk.

        Args:
            progress: called after each part with the numbers of parts done and in all.

        Raises:
            DeviceError: if memory runs out.
        """
        parts = list(rehearsals(self.model, self.config))
        counts, fresh = replace(self.counts, misses=Counter(self.counts.misses)), not self.prefixes
        try:
            for done, part in enumerate(parts, 1):
                self._rehearse(part)
                if progress is not None:
                    progress(done, len(parts))
        finally:
            vars(self.counts).update(vars(counts))
            if fresh and self.prefixes is not None:
                self.prefixes.clear()

    def _rehearse(self, part: Rehearsal) -> None:
        if part.prompt is not None:
            self.run([self.prepare(part.prompt, part.sampling)])
            return
        self.stay_in_process()
        with self._lock, self._on_device(), torch.inference_mode():
            if self.runner is None:
                self._fit_cache(1, 1, None)
            assert self.runner is not None
            self.runner.rehearse(part)

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
            batch = self._next_batch()
            if not batch:
                return
            assert self.runner is not None
            assert self.prefixes is not None
            try:
                for request in self.scheduler.running:
                    request.start()
                # What is kept for later takes memory, too, which there was too little of.
                with nullcontext() if self.scheduler.shrunk else self.prefixes.marking(batch):
                    written = self.runner(batch, self.scheduler.running)
                self.scheduler.went_well()
                for request, chosen in written:
                    self._push(request, chosen)
            except Exception as error:
                self._isolate(batch, error)
            except BaseException:  # Ctrl-C: states may be half-written
                for request, _ in batch:
                    self._restart(request)
                raise

    def _next_batch(self) -> list[tuple[Request, int]]:
        """Who runs in this step. Nobody, if that failed: it is the error of the one whose turn it was, in the end."""
        scheduler = self.scheduler
        try:
            chosen = scheduler.schedule()
        except Exception as error:
            request, scheduler.giving = scheduler.giving or [*scheduler.waiting, *scheduler.running][0], None
            if memory.is_exhausted(error) and not request.alone:
                self._release()
                request.alone = True
            else:
                self._fail(request, error)
            return []
        return [(request, tokens) for request, tokens in chosen if self._goes_on(request)]

    def _goes_on(self, request: Request) -> bool:
        """False, and it ends, if what it was to begin with is there no more."""
        after = request.after
        if after is None or request.computed >= after.tokens:
            return True
        self._fail(request, InputError(f"what was read before is gone ({after.lost or 'let go'}): read it again"))
        return False

    def _push(self, request: Request, chosen: Chosen) -> None:
        """Hand a request its next token."""
        if chosen.error:
            what = "tools" if request.params.response_format is None else "response_format"
            self._fail(request, InputError(f"{what} cannot be held to any further: {chosen.error}"))
            return
        try:
            if chosen.logprobs:
                request.logprobs.append(TokenLogprob.of(chosen.logprobs, self.model.processor.tokenizer.token_bytes))
            request.push(chosen.token_id, self.model.end_ids)
            request.alone = False
        except Exception as error:  # of the detokeniser
            request.error = error
        if request.done:
            self._end(request)

    def _isolate(self, batch: Sequence[tuple[Request, int]], error: Exception) -> None:
        """After a step failed: states may be half-written.

        If memory ran out, less is done at once until it suffices, or is too little for one request alone. Whose fault
        another error was shows when each runs by itself.
        """
        requests = [request for request, _ in batch]
        if memory.is_exhausted(error):
            traceback.clear_frames(error.__traceback__)  # they hold what the failed pass had allocated
            self._release()
            if self.scheduler.shrink(batch):
                for request in requests:
                    self._restart(request)
                return
        if len(requests) == 1:
            self._fail(requests[0], error)
            self.scheduler.recover()
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

    def _prepare(self) -> None:
        """Between generations, see to it that there is a cache that fits the model and the next request."""
        for _ in range(len(self._dropped)):
            held = self._dropped.popleft()
            if not held.lost and any(not request.done for request in held.users):
                self._dropped.append(held)
            elif self.prefixes is not None:
                self.prefixes.let_go(held)
        while self.scheduler.waiting and not self.scheduler.running:
            request = self.scheduler.waiting[0]
            try:
                self._fit_cache(request.upcoming, request.most, request.after)
            except Exception as error:
                self._fail(request, error)
            else:
                return

    def _end(self, request: Request) -> None:
        try:
            if request.error is None and self.prefixes is not None:
                if request.hold and request.finish_reason and request.slot is not None:
                    request.held = self.prefixes.hold(request.slot, request.computed)
                if not self.scheduler.shrunk:
                    self.prefixes.keep(request)  # with what it has written: a conversation's next prompt has that, too
        except Exception as error:
            if memory.is_exhausted(error):
                self._release()
            if request.hold and request.held is None:
                request.error = error
            # Otherwise the answer is there, and only the next prompt is read from its beginning.
        finally:
            self.scheduler.remove(request)
            if not self.scheduler.running and not self.scheduler.waiting:
                self.scheduler.recover()
            request.features.clear()

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
