"""Many requests of a picture each, all there at once, beside what their parts take by themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from preprocessing import Patcher
from vl.engine import Request, SamplingParams
from vl.model import DEFAULT_PROMPT, MiniMaxVL

_ALONE = 3  # requests that are read alone
_QUESTION = 512  # tokens of the cache beside a picture and an answer: a page that is not full, too


@dataclass(frozen=True)
class Crowd:
    """What is asked.

    Attributes:
        requests: how many. image: width and height of the picture that is new in each.
        written: tokens of an answer.
    """

    requests: int
    image: tuple[int, int]
    written: int

    def tokens(self, patcher: Patcher) -> int:
        """Of the cache, that they take at most."""
        return self.requests * (patcher.grid(*self.image).tokens + _QUESTION + self.written)

    @property
    def name(self) -> str:
        width, height = self.image
        return f"{self.requests} questions at once, a {width} x {height} image and {self.written} tokens each"

    def seconds(self, model: MiniMaxVL, seed: int) -> float:
        """From all being there, their pictures cut into tiles, to the last token of the last answer."""
        requests = [self._request(model, (seed, row), self.written) for row in range(self.requests)]
        begun = time.perf_counter()
        model.engine.run(requests)
        return time.perf_counter() - begun

    def read_alone(self, model: MiniMaxVL, seed: int) -> float:
        """Seconds in which one of them is encoded and read when it is the only one."""
        found = []
        for row in range(_ALONE):
            timings = model.engine.run([self._request(model, (seed, row), 1)])[0].timings
            found.append(timings.vision + timings.prefill)
        return median(found)

    def floor(self, read: float, step: float) -> float:
        """Seconds if each was read as fast as alone, and all were written in steps of all of them."""
        return self.requests * read + (self.written - 1) * step

    def _request(self, model: MiniMaxVL, seed: tuple[int, int], written: int) -> Request:
        """Each draws its tokens: random weights would give all the same most likely one, and few experts to read."""
        drawn = torch.Generator().manual_seed(seed[0] << 16 | seed[1])  # 32 bits of a seed count
        width, height = self.image
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=drawn)
        parts = [{"type": "image", "image": pixels.numpy()}, {"type": "text", "text": DEFAULT_PROMPT}]
        inputs = model.processor([{"role": "user", "content": parts}])
        params = SamplingParams(max_new_tokens=written, temperature=1.0, seed=seed[1])
        return model.engine.prepare(inputs, params)
