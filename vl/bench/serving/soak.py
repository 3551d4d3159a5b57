"""Many clients for a time, of which some leave in the middle and some send nonsense: nothing may be lost or left."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vl.bench.pictures import photograph_part
from vl.bench.serving.audit import Sample, growth, leaks, memory_of, sample, until_idle
from vl.bench.serving.client import Answer, Client
from vl.bench.serving.malformed import MAX_NEW_TOKENS, malformed
from vl.bench.serving.requests import words
from vl.errors import Error

FINISHED, CANCELLED, REFUSED, TURNED_AWAY = "finished", "cancelled", "refused", "turned away"

_KINDS = {"streamed": 0.4, "whole": 0.15, "leaves": 0.3, "leaves at once": 0.05, "malformed": 0.1}  # parts of all
_LOOKS, _SLOWEST_LOOK = 200, 1.0  # looks at a server, and seconds between them
_IDLE = 60.0  # seconds that a server has to end what was left in the middle
_MEMORY_KNOWN = 300.0  # seconds of a soak that memory is judged after: before, it is only just taken
_FULL = 429
_SIZES = ((224, 224), (336, 336), (640, 480), (480, 640), (800, 600))
_SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "sides": {"type": "integer", "minimum": 0, "maximum": 12},
    },
    "required": ["colour", "sides"],
    "additionalProperties": False,
}


@dataclass
class Soak:
    """What came of it.

    Attributes:
        seconds: for which clients asked.
        ended: requests by how they ended: finished, cancelled, refused, turned away (the server was full).
        refused: of those that had to be refused, by what was wrong with them.
        faults: whatever was not as it should be, in words; none is the only good number.
        samples: looks at the server. `last`: after all clients had left.
    """

    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    last: Sample | None = None

    @property
    def memory(self) -> tuple[float, float] | None:
        """Median resident bytes in the second and in the last quarter, if they are known."""
        return memory_of(self.samples)

    def as_json(self) -> dict[str, Any]:
        counts = {"ended": dict(self.ended), "refused": dict(self.refused)}  # asdict knows no Counter
        looks = [asdict(look) for look in self.samples]
        last = None if self.last is None else asdict(self.last)
        return vars(self) | counts | {"memory": self.memory, "samples": looks, "last": last}


async def soak(
    client: Client,
    model: str,
    *,
    seconds: float,
    clients: int,
    questions: int,
    seed: int = 0,
    tell: Callable[[str], object] = lambda _: None,
) -> Soak:
    """Ask each of some questions alone, then have clients ask them at the same time, and look at the server meanwhile.

    Args:
        model: its name at the server, whose limits have to be those of `vl.bench.serving.malformed`.
        seconds: after which no more is asked. Every client asks at least once.
        questions: different ones, whose answers are greedy.
        tell: told how far it is.

    Raises:
        Error: if the server has no `/metrics` of this project.
    """
    asked = make_questions(model, questions, seed)
    answers = []
    for number, body in enumerate(asked, 1):
        tell(f"asking alone: {number} of {questions}")
        answers.append(await client.stream(body))
    run = _Run(client, list(zip(asked, answers, strict=True)), model)
    found = run.found
    found.faults += [f"alone: {answer.failure}: {answer.message}" for answer in answers if answer.failure]
    if found.faults:
        return found
    start = time.perf_counter()
    found.samples.append(await sample(client, start))
    looking = asyncio.create_task(run.look(start, min(_SLOWEST_LOOK, seconds / _LOOKS), tell))
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(run.one_client(random.Random(f"{seed} {number}"), start + seconds))
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    found.seconds = time.perf_counter() - start
    try:
        found.last = await until_idle(client, start, _IDLE)
    except Error as error:
        found.faults.append(str(error))
        return found
    found.faults += leaks(found.last)
    if found.last.failed:
        found.faults.append(f"{found.last.failed} answers ended by an error of the engine")
    if found.seconds >= _MEMORY_KNOWN:
        found.faults += growth(found.samples)
    return found


class _Run:
    def __init__(self, client: Client, known: Sequence[tuple[dict[str, Any], Answer]], model: str) -> None:
        self.found = Soak()
        self._client, self._known, self._malformed = client, known, malformed(model)

    async def look(self, start: float, every: float, tell: Callable[[str], object]) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                self.found.samples.append(await sample(self._client, start))
            except Error as error:
                self._fault(str(error))
            seconds = time.perf_counter() - start
            tell(f"{seconds:.0f} s: {self.found.ended.total()} requests, {len(self.found.faults)} faults")

    async def one_client(self, chosen: random.Random, until: float) -> None:
        """Ask, and ask again after a while: as long as a server that is full says, and somewhat more."""
        while True:
            (kind,) = chosen.choices(list(_KINDS), list(_KINDS.values()))
            answer = await (self._nonsense(chosen) if kind == "malformed" else self._question(chosen, kind))
            left = until - time.perf_counter()
            await asyncio.sleep(min(max(left, 0.0), answer.retry_after + chosen.expovariate(4.0)))
            if time.perf_counter() >= until:
                return

    async def _nonsense(self, chosen: random.Random) -> Answer:
        wrong = chosen.choice(self._malformed)
        answer = await self._client.post(wrong.content, wrong.kind)
        if answer.status == wrong.status and answer.message:
            self._end(REFUSED)
            self.found.refused[wrong.name] += 1
        elif answer.status == _FULL:
            self._end(TURNED_AWAY)
        else:
            self._fault(f"{wrong.name}: {answer.failure or answer.status} {answer.message}, not {wrong.status}")
        return answer

    async def _question(self, chosen: random.Random, kind: str) -> Answer:
        body, alone = chosen.choice(self._known)
        answer = Answer(time.perf_counter(), finish=CANCELLED)
        if kind == "leaves at once":  # before there is an answer, or even a place for it
            ask = chosen.choice((self._client.stream, self._client.whole))
            with suppress(TimeoutError):
                async with asyncio.timeout(chosen.uniform(0.0, 0.2)):
                    answer = await ask(body)
        elif kind == "whole":
            answer = await self._client.whole(body)
        else:
            leave_after = chosen.randrange(max(1, len(alone.chunks))) if kind == "leaves" else None
            answer = await self._client.stream(body, leave_after)
        self._check(answer, alone)
        return answer

    def _check(self, answer: Answer, alone: Answer) -> None:
        """Whether it is the answer that was given alone, or the beginning of it."""
        if answer.status == _FULL:
            self._end(TURNED_AWAY)
        elif answer.failure:
            self._fault(f"a good request: {answer.failure}: {answer.message}")
        elif answer.finish == CANCELLED:
            self._compare(answer.text, alone.text[: len(answer.text)], CANCELLED)
        else:
            self._compare((answer.text, answer.finish), (alone.text, alone.finish), FINISHED)

    def _compare(self, found: object, expected: object, how: str) -> None:
        if found == expected:
            self._end(how)
        else:
            self._fault(f"an answer that differs from the one given alone: {found!r}, not {expected!r}")

    def _end(self, how: str) -> None:
        self.found.ended[how] += 1

    def _fault(self, what: str) -> None:
        self.found.faults.append(what[:500])


def make_questions(model: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests for greedy answers: texts and photographs, one turn or two, some bound to a schema."""
    chosen = random.Random(seed)
    made = []
    for number in range(count):
        content: list[dict[str, Any]] = [{"type": "text", "text": words(chosen, chosen.randint(1, 120))}]
        if number % 3:
            content.insert(0, photograph_part(*chosen.choice(_SIZES), seed=chosen.randrange(count)))
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if number % 4 == 1:
            turns = {"role": "assistant", "content": "A house."}, {"role": "user", "content": "And what else?"}
            messages += turns
        if number % 2:
            messages.insert(0, {"role": "system", "content": words(random.Random(seed), 60)})
        body = {"model": model, "messages": messages, "max_tokens": chosen.randint(4, 96), "temperature": 0}
        if number % 5 == 4:
            schema = {"name": "shape", "strict": True, "schema": _SCHEMA}
            body |= {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": MAX_NEW_TOKENS}
        made.append(body)
    return made


def draw_soak(found: Soak, path: Path) -> None:
    """Memory and requests over time, into one PNG.

    Raises:
        ImportError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    looks = [*found.samples, *([found.last] if found.last else [])]
    minutes = [look.seconds / 60 for look in looks]
    figure, (memory, requests) = plt.subplots(2, 1, figsize=(10.4, 5.6), sharex=True, constrained_layout=True)
    memory.plot(minutes, [look.memory / 2**20 for look in looks], color="#d6336c", label="resident memory")
    memory.set_ylabel("MiB")
    memory.set_ylim(bottom=0)
    for what, colour in (("running", "#1c7ed6"), ("waiting", "#adb5bd")):
        requests.plot(minutes, [getattr(look, what) for look in looks], color=colour, linewidth=0.8, label=what)
    requests.set_ylabel("requests")
    requests.set_xlabel("minutes")
    for axis in (memory, requests):
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", fontsize=9)
    figure.suptitle(", ".join(f"{count:,} {how}" for how, count in found.ended.most_common()), fontsize=11)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
