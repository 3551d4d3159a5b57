"""A load from its settings: against the server at a URL, or one that is started for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vl.bench.serving.client import Client
from vl.bench.serving.load import Sent, send
from vl.bench.serving.process import started
from vl.bench.serving.requests import Mixture, made_up, read_questions, words_per_token

REQUESTS = 64


@dataclass(frozen=True)
class Load:
    """Settings.

    Attributes:
        url: of a server; None: one is started, and ended with the load. `key`: of the server.
        model: its name at the server (None: its only one), or what `vl serve` is to load (None: nano).
        options: of `vl serve`, if one is started.
        records: a file of what is asked; None: `mixture` says.
        requests: how many; None: all records, or `REQUESTS`.
        output_tokens: of an answer at most.
        fields: more, of every request; these win.
        rate, seed: see `vl.bench.serving.load.send`.
    """

    url: str | None = None
    key: str | None = None
    model: str | None = None
    options: Sequence[str] = ()
    records: Path | None = None
    requests: int | None = None
    mixture: Mixture = field(default_factory=Mixture)
    output_tokens: int = 128
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = math.inf
    seed: int = 0

    def run(self, concurrency: int | None = None, tell: Callable[[str], object] = lambda _: None) -> list[Sent]:
        """Measure once. A server that is started has nothing in its caches of what was asked before.

        Args:
            concurrency: requests under way at once; None: all.
            tell: told what is being done.

        Raises:
            ConfigError, InputError, ImageError, Error: if the server or the records cannot be used.
        """
        tell("starting")
        with started(self.model or "nano", self.options) if self.url is None else nullcontext(self.url) as url:
            return asyncio.run(self._measure(url, concurrency, tell))

    async def _measure(self, url: str, concurrency: int | None, tell: Callable[[str], object]) -> list[Sent]:
        async with Client(url, self.key) as client:
            name = await client.find_model(None if self.url is None else self.model)
            tell("preparing requests")
            if self.records is not None:
                questions = read_questions(self.records, self.requests)
            else:
                counted = await words_per_token(client, name)  # which is also the server's first request
                questions = made_up(self.mixture, self.requests or REQUESTS, self.seed, counted)
            fields = {"model": name, "max_tokens": self.output_tokens, "temperature": 0, **self.fields}
            return await send(
                client, questions, fields, rate=self.rate, concurrency=concurrency, seed=self.seed,
                tell=lambda ended: tell(f"{ended} of {len(questions)} requests"),
            )  # fmt: skip
