"""One caller's trouble is nobody else's, and leaves the engine as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from endless import endless
from forkserver import run
from torch import Tensor

import vl
from vl.engine import Request, TextStream
from vl.engine import memory as memory_module
from vl.engine import runner as runner_module
from vl.engine.runner import Runner


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


QUESTIONS = [ask(text) for text in ("Hello", "Describe it in detail.", "Count to 9")]


@pytest.fixture
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu")


SAMPLING = {"max_new_tokens": 12, "temperature": 1.3, "seed": 4}


@pytest.fixture
def expected(model: vl.MiniMaxVL) -> list[list[int]]:
    found = [model.generate([question], **SAMPLING)[0].token_ids for question in QUESTIONS]
    assert len(set(map(tuple, found))) == len(found)
    return found


def submit(model: vl.MiniMaxVL, questions: Sequence[Any] = QUESTIONS, **sampling: Any) -> list[Request]:
    params = vl.SamplingParams(**{**SAMPLING, **sampling})  # type: ignore[arg-type]
    return [model.engine.submit(model.processor(question), params) for question in questions]


def finish(model: vl.MiniMaxVL, requests: Sequence[Request]) -> None:
    for _ in range(500):
        if all(request.done for request in requests):
            return
        model.engine.step()
    raise AssertionError("the requests do not come to an end")


@pytest.mark.parametrize("bad", [{"top_k": 50.0}, {"temperature": None}, {"stop": 3}, {"max_new_tokens": 10**12}])
def test_a_bad_argument_raises_for_its_caller_alone(
    model: vl.MiniMaxVL, expected: list[list[int]], bad: dict[str, Any], left_in: Callable[..., dict[str, int]]
) -> None:
    running = submit(model)
    model.engine.step()
    for call in (model.stream, model.chat, lambda question, **sampling: model.generate([question] * 2, **sampling)):
        with pytest.raises(vl.InputError, match=next(iter(bad))):
            call(QUESTIONS[0], **bad)
    finish(model, running)
    assert [request.token_ids for request in running] == expected
    assert not left_in(model)


class Stutter:
    """A detokeniser that fails at its third token."""

    def __init__(self, stream: TextStream) -> None:
        self._stream, self._pushed = stream, 0

    def push(self, token_id: int) -> str:
        self._pushed += 1
        if self._pushed == 3:
            raise UnicodeError("no such character")
        return self._stream.push(token_id)

    def flush(self) -> str:
        return self._stream.flush()


def test_a_detokeniser_that_fails_ends_its_own_request(
    model: vl.MiniMaxVL, expected: list[list[int]], left_in: Callable[..., dict[str, int]]
) -> None:
    requests = submit(model)
    requests[1].stream = Stutter(requests[1].stream)
    finish(model, requests)
    assert [request.token_ids for request in requests[::2]] == expected[::2]
    with pytest.raises(UnicodeError, match="no such character"):
        requests[1].result()
    assert not left_in(model)


def poisoned(victim: Request, error: Exception, model: vl.MiniMaxVL, patch: pytest.MonkeyPatch) -> None:
    """Every step fails in which `victim` would write its fourth token; states are half-written by then."""
    call = Runner.__call__

    def runner(self: Runner, batch: list[tuple[Request, int]], running: list[Request]) -> list[tuple[Request, int]]:
        if any(request is victim and request.written == 3 for request, _ in batch):
            for request, _ in batch:
                self.cache.states[:, request.slot] += 1
            raise error
        return call(self, batch, running)

    patch.setattr(Runner, "__call__", runner)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("error", [RuntimeError("bad numbers"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_step_that_fails_ends_the_request_it_fails_for(
    model: vl.MiniMaxVL,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    victim: int,
    error: Exception,
    left_in: Callable[..., dict[str, int]],
) -> None:
    requests = submit(model)
    poisoned(requests[victim], error, model, monkeypatch)
    finish(model, requests)
    for index, request in enumerate(requests):
        if index != victim:
            assert request.token_ids == expected[index]
    assert requests[victim].token_ids == expected[victim][:3]
    told = requests[victim].error
    if isinstance(error, torch.OutOfMemoryError):
        assert isinstance(told, vl.DeviceError)
        assert "cpu ran out of memory while working on" in str(told)
        assert told.__cause__ is error
    else:
        assert told is error
    assert not left_in(model)


def test_what_a_failed_pass_had_allocated_is_let_go(model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[ref[Tensor]] = []

    def runner(self: Runner, batch: object, running: object) -> list[tuple[Request, int]]:
        activations = torch.zeros(1000)
        held.append(ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Runner, "__call__", runner)
    requests = submit(model)
    finish(model, requests)
    assert len(held) > 3  # all three together, then by fewer tokens, then each by itself
    assert all(isinstance(request.error, vl.DeviceError) for request in requests)
    assert [kept() for kept in held] == [None] * len(held)


def test_the_thread_that_drives_a_failing_step_is_not_the_one_that_suffers(
    model: vl.MiniMaxVL, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = submit(model, QUESTIONS[1:])
    poisoned(requests[0], RuntimeError("bad numbers"), model, monkeypatch)
    assert model.generate([QUESTIONS[0]], **SAMPLING)[0].token_ids == expected[0]
    finish(model, requests)
    assert requests[1].token_ids == expected[2]


def test_after_an_interrupt_others_go_on_where_they_were(
    model: vl.MiniMaxVL, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = submit(model)
    model.engine.step()
    with monkeypatch.context() as patch:
        poisoned(requests[1], KeyboardInterrupt(), model, patch)  # type: ignore[arg-type]
        while requests[1].written < 3:
            model.engine.step()
        with pytest.raises(KeyboardInterrupt):
            model.engine.step()
    finish(model, requests)
    assert [request.token_ids for request in requests] == expected


def test_an_image_that_cannot_be_encoded_ends_its_own_request(
    model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch, left_in: Callable[..., dict[str, int]]
) -> None:
    assert model.vision is not None
    good, bad = (np.full((40, 60, 3), value, dtype=np.uint8) for value in (90, 255))
    expected = model.caption(good, **SAMPLING)
    forward = model.vision.forward

    def fails(tiles: Tensor, grids: Sequence[Any], **options: Any) -> Tensor:
        if bool((tiles == 255).flatten(1).any()):
            raise RuntimeError("too white")
        return forward(tiles, grids, **options)

    monkeypatch.setattr(model.vision, "forward", fails)
    content = [
        [{"type": "image", "image": image}, {"type": "text", "text": vl.DEFAULT_PROMPT}] for image in (good, bad)
    ]
    requests = submit(model, [[{"role": "user", "content": parts}] for parts in content])
    finish(model, requests)
    assert requests[0].text == expected
    assert isinstance(requests[1].error, RuntimeError)
    assert not left_in(model)


# Memory


@pytest.mark.parametrize("count", [10**10, 10**18, 2**63 - 1])
def test_more_tokens_than_memory_holds_are_refused_with_what_fits(
    model: vl.MiniMaxVL, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with pytest.raises(
        vl.InputError, match=rf"^max_new_tokens={count} .* the memory of cpu has room for [0-9,]+ tokens"
    ):
        model.chat(QUESTIONS[0], max_new_tokens=count)
    monkeypatch.setattr(memory_module, "free", lambda device: 2**24)
    prompt = model.processor(QUESTIONS[0])
    with pytest.raises(vl.InputError, match="ask for at most") as caught:
        model.generate([prompt], max_new_tokens=count)
    most = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    model.engine.prepare(prompt, vl.SamplingParams(max_new_tokens=most))
    with pytest.raises(vl.InputError, match="ask for at most"):
        model.engine.prepare(prompt, vl.SamplingParams(max_new_tokens=most + 1))
    assert model.generate([QUESTIONS[0]], **SAMPLING)[0].token_ids == expected[0]


def test_a_prompt_that_memory_cannot_hold_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", cache_tokens=16, page_size=4)
    monkeypatch.setattr(memory_module, "free", lambda device: 0)
    with pytest.raises(vl.InputError, match="has room for 0 tokens; shorten the prompt"):
        model.chat(ask("Hello " * 20))


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError(), OSError("odd")]
)
def test_a_cache_that_cannot_be_allocated_leaves_the_engine_as_it_was(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, left_in: Callable[..., dict[str, int]]
) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", cache_tokens=64, page_size=4)
    expected = model.chat(QUESTIONS[0], max_new_tokens=12)
    cache = runner_module.HybridCache
    with monkeypatch.context() as patch:
        patch.setattr(
            runner_module, "HybridCache", lambda config, **sizes: _fails_above(16, cache, config, sizes, error)
        )
        for _ in range(2):
            with pytest.raises(vl.DeviceError if not isinstance(error, OSError) else OSError) as caught:
                model.chat(ask("word " * 100), max_new_tokens=12)
            assert model.chat(QUESTIONS[0], max_new_tokens=12) == expected
            assert not left_in(model)
    if isinstance(caught.value, vl.DeviceError):
        assert "lower max_new_tokens, or load the model with smaller prefill_tokens" in str(caught.value)
    assert isinstance(model.chat(ask("word " * 100), max_new_tokens=12), str)


def _fails_above(pages: int, cache: Callable[..., Any], config: Any, sizes: dict[str, Any], error: Exception) -> Any:
    if sizes["pages"] > pages:
        raise error
    return cache(config, **sizes)


@pytest.mark.parametrize("option", ["max_batch_size", "cache_tokens", "page_size"])
def test_settings_beyond_the_memory_are_named(tiny_checkpoint: Path, option: str) -> None:
    with pytest.raises(vl.ConfigError, match=rf"{option}=1000000000000\b.* but cpu has .* GiB: lower them|in pages of"):
        vl.load(tiny_checkpoint, device="cpu", **{option: 10**12})


# Forks


CHILD = """
import os, signal, sys, threading, vl
model = vl.load(sys.argv[1], device="cpu")
model.end_ids = frozenset()
ask = [{"role": "user", "content": "Hello"}]
stream = model.stream(ask, max_new_tokens=10**5)
inside, leave = threading.Event(), threading.Event()
step = model.language_model.forward
def slow(*args):
    inside.set(); leave.wait(240)
    return step(*args)
stepper = threading.Thread(target=next, args=(stream,), daemon=True)
if sys.argv[2] == "stepping":
    model.language_model.forward = slow
    stepper.start()
    inside.wait()
else:
    next(stream)
if not os.fork():
    signal.alarm(120)
    for call in (lambda: model.chat(ask), lambda: next(model.stream(ask)), lambda: model.engine.step()):
        try:
            call()
        except vl.DeviceError as error:
            print(error, flush=True)
    del stream
    os._exit(0)
_, status = os.wait()
leave.set()
model.language_model.forward = step
if sys.argv[2] == "stepping":
    stepper.join()  # a thread that is in one of torch's operations when Python ends would abort the process
print("child", status, "parent", len(model.generate([ask], max_new_tokens=3)[0].token_ids))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize("when", ["stepping", "between"])
def test_a_forked_child_is_told_and_does_not_hang(tiny_checkpoint: Path, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_checkpoint), when],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # with one thread, tensors could be computed in the child
    )
    assert done.stdout.count("this process was forked from one that uses the model") == 3
    assert done.stdout.count("'spawn'") == 3
    assert done.stdout.endswith("child 0 parent 3\n")


GRANDCHILD = """
import os, signal, sys, vl
ask = [{"role": "user", "content": "Hello"}]
expected = vl.load(sys.argv[1], device="cpu").chat(ask, max_new_tokens=3)
if not os.fork():
    signal.alarm(120)
    model = vl.load(sys.argv[1], device="cpu")
    assert model.chat(ask, max_new_tokens=3) == expected
    waiting = model.engine._hashing._work_queue
    model.engine._hashing.submit(int).result(100)
    print("prompts left behind:", waiting.qsize(), flush=True)
    os._exit(0)
print("child", os.wait()[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_model_that_a_forked_child_loads_has_threads_of_its_own(tiny_checkpoint: Path) -> None:
    done = run(
        [sys.executable, "-c", GRANDCHILD, str(tiny_checkpoint)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # or PyTorch's own threads would be the parent's
    )
    assert done.stdout == "prompts left behind: 0\nchild 0\n"


# Threads


def test_threads_with_good_bad_and_abandoned_requests_on_a_small_cache(
    tiny_checkpoint: Path, left_in: Callable[..., dict[str, int]]
) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", page_size=4, cache_tokens=120, max_batch_size=3, prefill_tokens=20)
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    seen = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    asked = [*QUESTIONS, seen]
    expected = [vl.load(tiny_checkpoint, device="cpu").chat(messages, **SAMPLING) for messages in asked]
    wrong: list[object] = []

    def good(index: int) -> None:
        for _ in range(3):
            answer = "".join(model.stream(asked[index], **SAMPLING))
            if answer != expected[index]:
                wrong.append((index, answer))

    def bad() -> None:
        for sampling in ({"top_k": 50.0}, {"max_new_tokens": 10**15}, {"stop": ""}, {"tempo": 3}):
            try:
                model.generate([QUESTIONS[0], QUESTIONS[1]], **sampling)
            except vl.InputError:
                continue
            wrong.append(sampling)

    def abandoning() -> None:
        for _ in range(4):
            stream = model.stream(QUESTIONS[1], **endless(model))
            next(stream, None)
            stream.close()  # type: ignore[attr-defined]

    work: list[tuple[Callable[..., None], tuple[int, ...]]] = [(good, (index,)) for index in range(len(asked))]
    threads = [threading.Thread(target=target, args=args) for target, args in [*work, (bad, ()), (abandoning, ())]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert not left_in(model)
