"""`AsyncEngine` over a model of several processes: the answers of one, and an end for all when one of them dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from endless import endless

import vl
from vl.engine import AsyncEngine, SamplingParams
from vl.ranks.model import SplitVL

QUESTIONS = ("Hello", "Describe it.", "Count to 9")


def test_coroutines_over_ranks(tiny_checkpoint: Path) -> None:
    one = vl.load(tiny_checkpoint, device="cpu")
    split = vl.load(tiny_checkpoint, device="cpu", devices=2, placement="layers")
    assert isinstance(split, SplitVL)
    asked = [one.processor([{"role": "user", "content": question}]) for question in QUESTIONS]
    expected = [answer.token_ids for answer in one.generate(asked, max_new_tokens=8)]

    async def work() -> None:
        async with AsyncEngine(split.engine) as engine:
            short, long = SamplingParams(max_new_tokens=8), SamplingParams(**endless(split))
            answers = await asyncio.gather(*(engine.generate(inputs, short) for inputs in asked))
            assert [answer.token_ids for answer in answers] == expected
            tasks = [asyncio.create_task(engine.generate(inputs, long)) for inputs in asked]
            await asyncio.sleep(0.05)
            os.kill(split._ranks._held.ranks[1].process.pid, signal.SIGKILL)
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(end, vl.DeviceError)
                assert "rank 1 (cpu) was killed by SIGKILL" in str(end)

    try:
        asyncio.run(asyncio.wait_for(work(), 250))
    finally:
        split.close()
