"""Coroutines are answered as threads are; whoever leaves frees what they had; a failure is told to its own caller."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from endless import endless
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import Inputs
from vl.engine import AsyncEngine, Engine, SamplingParams
from vl.engine.runner import Runner

QUESTIONS = ("Hello", "Describe it in detail.", "Count to 9")
PARAMS = SamplingParams(max_new_tokens=12, temperature=1.3, seed=4)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu", max_batch_size=3, cache_tokens=16384)


@pytest.fixture(scope="module")
def asked(model: vl.MiniMaxVL) -> list[Inputs]:
    return [model.processor([{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(model: vl.MiniMaxVL, asked: list[Inputs]) -> list[str]:
    found = [model.generate([inputs], max_new_tokens=12, temperature=1.3, seed=4)[0].text for inputs in asked]
    assert len(set(found)) == len(found)
    return found


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 200))


async def streamed(engine: AsyncEngine, inputs: Inputs, params: SamplingParams) -> str:
    return "".join([piece async for piece in engine.stream(inputs, params)])


def test_answers_are_those_of_the_model(
    model: vl.MiniMaxVL, asked: list[Inputs], expected: list[str], until_idle: Callable[..., None]
) -> None:
    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            texts = await asyncio.gather(*(streamed(engine, inputs, PARAMS) for inputs in asked * 3))
            assert texts == expected * 3
            answers = await asyncio.gather(*(engine.generate(inputs, PARAMS) for inputs in asked))
            assert [answer.text for answer in answers] == expected
            assert all(answer.usage.completion_tokens == len(answer.token_ids) for answer in answers)
        await asyncio.to_thread(until_idle, model)

    run(work())


def test_deltas_make_up_the_answer(model: vl.MiniMaxVL, asked: list[Inputs]) -> None:
    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            request = await engine.prepare(asked[0], PARAMS)
            deltas = [delta async for delta in engine.follow(request)]
            assert "".join(delta.text for delta in deltas) == request.text
            assert [token for delta in deltas for token in delta.token_ids] == request.token_ids
            assert [delta.done for delta in deltas] == [False] * (len(deltas) - 1) + [True]
            assert len(deltas) > 3

    run(work())


def test_a_cancelled_task_frees_what_it_had(
    model: vl.MiniMaxVL, asked: list[Inputs], expected: list[str], until_idle: Callable[..., None]
) -> None:
    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            tasks = [
                asyncio.create_task(engine.generate(asked[0], SamplingParams(**endless(model)))) for _ in range(5)
            ]  # two of them wait
            other = asyncio.create_task(engine.generate(asked[1], PARAMS))
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert (await other).text == expected[1]
            await asyncio.to_thread(until_idle, model)

    run(work())


def test_an_iterator_that_is_closed_frees_what_it_had(
    model: vl.MiniMaxVL, asked: list[Inputs], until_idle: Callable[..., None]
) -> None:
    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            async with aclosing(engine.stream(asked[0], SamplingParams(**endless(model)))) as pieces:
                async for _ in pieces:
                    break
            await asyncio.to_thread(until_idle, model)

    run(work())


def test_a_loop_that_ends_leaves_nothing(
    model: vl.MiniMaxVL, asked: list[Inputs], until_idle: Callable[..., None]
) -> None:
    engine = AsyncEngine(model.engine)

    async def leave() -> None:
        request = await engine.prepare(asked[0], SamplingParams(**endless(model)))
        deltas = engine.follow(request)
        await anext(deltas)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()  # without a word to whoever waits on it
    until_idle(model)
    run(engine.close())


def test_what_fails_is_told_to_its_own_caller(
    model: vl.MiniMaxVL,
    asked: list[Inputs],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    until_idle: Callable[..., None],
) -> None:
    call = Runner.__call__

    def runner(self: Runner, batch: Any, running: Any) -> Any:
        if any(request.prompt_tokens == len(asked[1]) and request.written == 3 for request, _ in batch):
            raise ValueError("a kernel failed")
        return call(self, batch, running)

    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            ends = await asyncio.gather(*(engine.generate(inputs, PARAMS) for inputs in asked), return_exceptions=True)
            assert isinstance(ends[1], ValueError)
            assert [ends[0].text, ends[2].text] == expected[::2]
            await asyncio.to_thread(until_idle, model)

    assert len({len(inputs) for inputs in asked}) == 3
    monkeypatch.setattr(Runner, "__call__", runner)
    run(work())


def test_a_step_that_cannot_run_ends_everybody_with_its_cause(
    model: vl.MiniMaxVL,
    asked: list[Inputs],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    until_idle: Callable[..., None],
) -> None:
    def broken() -> Any:
        raise RuntimeError("the scheduler is broken")

    async def work() -> None:
        assert isinstance(model.engine, Engine)
        async with AsyncEngine(model.engine) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(model.engine.scheduler, "schedule", broken)
                ends = await asyncio.gather(
                    *(engine.generate(inputs, PARAMS) for inputs in asked), return_exceptions=True
                )
            assert [str(end) for end in ends] == ["the scheduler is broken"] * 3
            await asyncio.to_thread(until_idle, model)
            assert (await engine.generate(asked[0], PARAMS)).text == expected[0]

    run(work())


@pytest.mark.parametrize("sampling", [{"max_new_tokens": 10**15}])
def test_what_cannot_be_held_is_refused_before_it_is_queued(
    model: vl.MiniMaxVL, asked: list[Inputs], sampling: dict[str, Any], until_idle: Callable[..., None]
) -> None:
    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            with pytest.raises(vl.InputError, match="max_new_tokens"):
                await engine.generate(asked[0], SamplingParams(**sampling))
            await asyncio.to_thread(until_idle, model)

    run(work())


def test_the_loop_does_not_wait_for_a_step(
    model: vl.MiniMaxVL, asked: list[Inputs], monkeypatch: pytest.MonkeyPatch, until_idle: Callable[..., None]
) -> None:
    call, turns, in_step = Runner.__call__, 0, threading.Event()

    def patient(self: Runner, *args: Any) -> Any:
        """A step that is over once the loop has turned three times more: never, if the loop waits for it."""
        in_step.set()
        last, until = time.monotonic() + 120, turns + 3
        while turns < until:
            assert time.monotonic() < last, "the loop stood still during a step"
            time.sleep(0.005)
        return call(self, *args)

    async def turn(while_any: list[asyncio.Task[Any]]) -> None:
        nonlocal turns
        while not all(task.done() for task in while_any):
            await asyncio.sleep(0.005)
            turns += 1

    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            tasks = [asyncio.create_task(engine.generate(inputs, SamplingParams(max_new_tokens=2))) for inputs in asked]
            await turn(tasks)
            assert [len((await task).token_ids) for task in tasks] == [2] * len(asked)
            tasks = [asyncio.create_task(engine.generate(inputs, SamplingParams(**endless(model)))) for inputs in asked]
            in_step.clear()
            while not in_step.is_set():
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # although the step has not ended
            turner = asyncio.create_task(turn([asyncio.create_task(asyncio.to_thread(until_idle, model))]))
            await turner

    monkeypatch.setattr(Runner, "__call__", patient)
    run(work())


def test_loops_and_threads_share_an_engine(
    model: vl.MiniMaxVL, asked: list[Inputs], expected: list[str], until_idle: Callable[..., None]
) -> None:
    engine = AsyncEngine(model.engine)
    found: list[tuple[int, str]] = []

    def in_a_loop(index: int) -> None:
        for _ in range(3):
            found.append((index, run(streamed(engine, asked[index], PARAMS))))

    def in_a_thread(index: int) -> None:
        for _ in range(3):
            answer = model.generate([asked[index]], max_new_tokens=12, temperature=1.3, seed=4)[0]
            found.append((index, answer.text))

    threads = [threading.Thread(target=target, args=(i,)) for target in (in_a_loop, in_a_thread) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert sorted(found) == sorted((i, expected[i]) for i in range(3) for _ in range(6))
    until_idle(model)
    run(engine.close())


def test_a_closed_engine_says_so(model: vl.MiniMaxVL, asked: list[Inputs], until_idle: Callable[..., None]) -> None:
    async def work() -> None:
        engine = AsyncEngine(model.engine)
        task = asyncio.create_task(engine.generate(asked[0], SamplingParams(**endless(model))))
        await asyncio.sleep(0.1)
        await engine.close()
        for waiting in (task, engine.generate(asked[0], PARAMS)):
            with pytest.raises(vl.DeviceError, match="closed"):
                await waiting
        await engine.close()
        await asyncio.to_thread(until_idle, model)

    run(work())


def test_a_process_ends_that_leaves_one_behind(tiny_checkpoint: Path) -> None:
    code = (
        "import asyncio, sys, vl\n"
        "from vl.engine import AsyncEngine, SamplingParams\n"
        "model = vl.load(sys.argv[1], device='cpu')\n"
        "engine = AsyncEngine(model.engine)\n"
        "inputs = model.processor([{'role': 'user', 'content': 'Hello'}])\n"
        "async def main():\n"
        "    task = asyncio.create_task(engine.generate(inputs, SamplingParams(max_new_tokens=10**4)))\n"
        "    await asyncio.sleep(0.3)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_checkpoint], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")


plans = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.none() | st.integers(0, 6)), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None)
@given(plan=plans)
def test_any_interleaving_gives_each_what_it_gets_alone(
    model: vl.MiniMaxVL,
    asked: list[Inputs],
    expected: list[str],
    plan: list[tuple[int, int, int | None]],
    until_idle: Callable[..., None],
) -> None:
    """Of each request: which question, turns of the loop before it comes, and deltas after which it leaves."""

    async def one(engine: AsyncEngine, question: int, pause: int, most: int | None) -> None:
        for _ in range(pause):
            await asyncio.sleep(0.002)
        request = await engine.prepare(asked[question], PARAMS)
        text, count = "", 0
        async with aclosing(engine.follow(request)) as deltas:
            async for delta in deltas:
                if most is not None and count >= most:
                    break
                text, count = text + delta.text, count + 1
        assert expected[question].startswith(text)
        assert most is not None or text == expected[question]

    async def work() -> None:
        async with AsyncEngine(model.engine) as engine:
            await asyncio.gather(*(one(engine, *request) for request in plan))
            await asyncio.to_thread(until_idle, model)

    run(work())
