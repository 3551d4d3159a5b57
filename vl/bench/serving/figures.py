"""What came of a load, in the words of those who measure servers: TTFT, TPOT, ITL, E2EL and goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vl.bench.serving.client import Answer
from vl.bench.serving.load import Sent

LATENCIES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "e2el": "end to end",
}


@dataclass(frozen=True)
class Spread:
    """Seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None if there are none."""
        if not values:
            return None
        return cls(float(np.mean(values)), *map(float, np.percentile(values, (50, 90, 99))))


@dataclass(frozen=True)
class Limits:
    """What a good answer keeps to, in seconds; None: anything. `itl`: on average over the answer."""

    ttft: float | None = None
    itl: float | None = None

    def kept(self, answer: Answer) -> bool:
        return all(
            most is None or (found is not None and found <= most)
            for most, found in ((self.ttft, ttft(answer)), (self.itl, tpot(answer) or 0.0))
        )


@dataclass(frozen=True)
class Figures:
    """Of some requests.

    Attributes:
        what: which ones.
        seconds: from the first arrival of all requests to the end of the last of them.
        answered, failed: how many, and by cause.
        input_tokens, cached_tokens, output_tokens: of those answered, as the server counts them.
        good: answered within the limits; None without limits.
        tokens_per_chunk: of those answered, on average. `uncounted`: answers whose tokens the server has not told:
            their pieces are counted.
        held_back: seconds for which requests waited here for a place, on average.
        latencies: by the names of `LATENCIES`; None where no answer has such a time.
        said: what the server said of the first that failed, by cause.
    """

    what: str
    seconds: float
    answered: int
    failed: dict[str, int]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    good: int | None
    tokens_per_chunk: float
    uncounted: int
    held_back: float
    latencies: dict[str, Spread | None]
    said: dict[str, str]

    @classmethod
    def of(cls, what: str, sent: Sequence[Sent], seconds: float, limits: Limits | None = None) -> Figures:
        answers = [each.answer for each in sent if not each.answer.failure]
        return cls(
            what,
            seconds,
            len(answers),
            dict(Counter(each.answer.failure for each in sent if each.answer.failure).most_common()),
            sum(answer.prompt_tokens for answer in answers),
            sum(answer.cached_tokens for answer in answers),
            sum(map(tokens_of, answers)),
            None if limits is None else sum(map(limits.kept, answers)),
            sum(map(tokens_of, answers)) / max(1, sum(len(answer.chunks) for answer in answers)),
            sum(not answer.output_tokens for answer in answers if answer.chunks),
            float(np.mean([each.held_back for each in sent])) if sent else 0.0,
            {
                "ttft": Spread.of([ttft(answer) for answer in answers]),
                "itl": Spread.of([gap for answer in answers for gap in itl(answer)]),
                "tpot": Spread.of([time for answer in answers if (time := tpot(answer)) is not None]),
                "e2el": Spread.of([answer.ended - answer.sent for answer in answers]),
            },
            {each.answer.failure: each.answer.message for each in reversed(sent) if each.answer.failure},
        )

    @property
    def requests_per_second(self) -> float:
        return self.answered / self.seconds

    @property
    def evenness(self) -> float | None:
        """The 99th percentile of the inter-token latency, in medians."""
        spread = self.latencies["itl"]
        return spread.p99 / spread.p50 if spread is not None and spread.p50 else None

    def as_json(self) -> dict[str, Any]:
        """Under the names that vLLM's benchmark gives such figures, times in milliseconds."""
        found: dict[str, Any] = {
            "what": self.what,
            "duration": self.seconds,
            "completed": self.answered,
            "failed": sum(self.failed.values()),
            "failures": self.failed,
            "total_input_tokens": self.input_tokens,
            "cached_input_tokens": self.cached_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.requests_per_second,
            "output_throughput": self.output_tokens / self.seconds,
            "total_token_throughput": (self.input_tokens + self.output_tokens) / self.seconds,
            "request_goodput": None if self.good is None else self.good / self.seconds,
            "good": self.good,
            "tokens_per_chunk": self.tokens_per_chunk,
            "answers_without_usage": self.uncounted,
            "mean_held_back_ms": 1e3 * self.held_back,
            "p99_over_median_itl": self.evenness,
        }
        for name, spread in self.latencies.items():
            if spread is not None:
                kinds = {"mean": spread.mean, "median": spread.p50, "p90": spread.p90, "p99": spread.p99}
                found |= {f"{kind}_{name}_ms": 1e3 * value for kind, value in kinds.items()}
        return found


def groups(sent: Sequence[Sent], limits: Limits | None = None) -> list[Figures]:
    """Of all requests, and of those with long prompts and the others by themselves, if there are such."""
    seconds = max(each.answer.ended for each in sent) - min(each.due for each in sent)
    parts: dict[str, Iterable[Sent]] = {"all": sent}
    if any(each.question.long for each in sent):
        parts["long prompts"] = [each for each in sent if each.question.long]
        parts["others"] = [each for each in sent if not each.question.long]
    return [Figures.of(what, list(part), seconds, limits) for what, part in parts.items()]


def tokens_of(answer: Answer) -> int:
    """Of an answer: as the server counts them, or else its pieces."""
    return answer.output_tokens or len(answer.chunks)


def ttft(answer: Answer) -> float:
    """From sending to the first piece that holds a token, or to the end of an answer of none."""
    return (answer.chunks[0] if answer.chunks else answer.ended) - answer.sent


def tpot(answer: Answer) -> float | None:
    """From the first piece to the last, for each token after the first; None of an answer in one piece."""
    if len(answer.chunks) < 2:
        return None
    return (answer.chunks[-1] - answer.chunks[0]) / max(1, tokens_of(answer) - 1)


def itl(answer: Answer) -> Iterator[float]:
    """Times between pieces, divided by the tokens that this answer's pieces after the first hold on average."""
    times = answer.chunks
    held = max(1.0, (tokens_of(answer) - 1) / max(1, len(times) - 1))
    for before, after in pairwise(times):
        yield (after - before) / held
