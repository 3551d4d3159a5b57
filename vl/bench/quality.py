"""What quantization costs: next-token distributions and task scores of each format beside the same model in full.

Every model is given the answers that the full one wrote, so that all are compared at the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from preprocessing import Inputs
from text_backbone import Packed
from vl.evaluation import Example, Ratio, Row, Task, evaluate, find_task
from vl.loading import load
from vl.model import MiniMaxVL
from vl.quantization import FORMATS

CONTENDERS = ("bfloat16", *FORMATS)  # the first is no quantization: what rounding to 16 bits costs
FULL = "float32"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Quality:
    """One model on one task.

    Attributes:
        name: "float32" for the model that the others are held to.
        tokens: how many positions were compared: those that write the full model's answers, the end token included.
        divergence: mean Kullback-Leibler divergence of the next token from the full model's, in nats.
        agreement: share of positions where both have the same most likely token.
        scores: of its own greedy answers; see `vl.evaluation.METRICS`.
        spread: of each score, the standard error of its difference from the full model's, over the examples. 0 where
            no answer was judged otherwise.
    """

    task: str
    name: str
    examples: int
    tokens: int
    divergence: float
    agreement: float
    scores: dict[str, float]
    spread: dict[str, float]


@dataclass(frozen=True)
class _Asked:
    """A prompt with the full model's answer behind it, and the logits that the full model gave it."""

    inputs: Inputs
    start: int  # the position whose next token is the first of the answer
    full: Tensor  # float32 [tokens, vocab], on the CPU


def bench_quality(
    source: str | os.PathLike[str],
    tasks: Sequence[str],
    names: Sequence[str] = CONTENDERS,
    *,
    count: int = 100,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    say: Say = lambda _: None,
) -> Iterator[Quality]:
    """Measure the full model on every task, then each of `names`. One model is in memory at a time.

    Args:
        source: as of `vl.load`; not quantised.
        tasks: names of `vl.evaluation.find_tasks()`.
        names: of `CONTENDERS`.
        count: examples of each task.
        batch_size: conversations answered at once.
        say: told what is being measured.

    Raises:
        ConfigError, CheckpointError: as `vl.load` and `find_task` do.
    """
    found = {name: _drawn(find_task(name), count) for name in tasks}
    asked: dict[str, list[_Asked]] = {}
    judged: dict[str, list[Row]] = {}  # the full model's answers
    for name in (FULL, *names):
        options: dict[str, Any] = {"quantization": name, "dtype": FULL} if name in FORMATS else {"dtype": name}
        model = load(source, device=device, max_batch_size=batch_size, **options)
        for task in tasks:
            say(f"{name} on {task}")
            result = evaluate(model, found[task], count, batch_size)
            if name == FULL:
                judged[task] = result.scored
                answers = {row.id: row.answer or "" for row in result.scored}
                examples = islice(found[task].examples(), count)
                asked[task] = [_ask(model, example, answers[example.id]) for example in examples]
            spread = {score: _spread(judged[task], result.scored, score) for score in result.scores}
            divergence, agreement, tokens = _compare(model, asked[task])
            yield Quality(task, name, len(asked[task]), tokens, divergence, agreement, result.scores, spread)
        del model  # before the next is loaded


def _drawn(task: Task, count: int) -> Task:
    """The task with its first questions drawn once for all models."""
    questions = [task.draw(index, None) for index in range(count)]
    return replace(task, draw=lambda index, _: questions[index])


def _spread(full: Sequence[Row], other: Sequence[Row], score: str) -> float:
    """Standard error of the difference of two scores, ratios of sums over the same examples, to first order."""
    shares = [_shares(rows, score) for rows in (full, other)]
    found = [b - a for a, b in zip(*shares, strict=True)]
    return (sum(each**2 for each in found) * len(found) / max(1, len(found) - 1)) ** 0.5


def _shares(rows: Sequence[Row], score: str) -> list[float]:
    """By how much each example moves a score from what it is; their sum is 0."""
    ratios = [row.scores.get(score, Ratio(0, 0)) for row in rows]
    bottom = sum(ratio.bottom for ratio in ratios) or 1.0
    mean = sum(ratio.top for ratio in ratios) / bottom
    return [(ratio.top - mean * ratio.bottom) / bottom for ratio in ratios]


def _ask(model: MiniMaxVL, example: Example, answer: str) -> _Asked:
    inputs = model.processor(example.messages)
    ids = [*model.processor.tokenizer.encode_plain(answer), *sorted(model.end_ids)[:1]]
    whole = replace(inputs, input_ids=torch.cat((inputs.input_ids, torch.tensor(ids))))
    return _Asked(whole, len(inputs) - 1, _logits(model, whole, len(inputs) - 1))


@torch.inference_mode()
def _logits(model: MiniMaxVL, inputs: Inputs, start: int) -> Tensor:
    """float32 [tokens, vocab] of the tokens after `start`."""
    packed = Packed.of([len(inputs)], device=model.device)
    hidden = model(inputs.input_ids, inputs.tiles[:], inputs.grids, packed)
    return model.language_model.logits(hidden[start:-1]).cpu()


def _compare(model: MiniMaxVL, asked: Sequence[_Asked]) -> tuple[float, float, int]:
    """Mean divergence, agreement, and how many tokens they are of."""
    divergence, same, tokens = 0.0, 0, 0
    for one in asked:
        found = _logits(model, one.inputs, one.start)
        p, q = (logits.double().log_softmax(-1) for logits in (one.full, found))
        divergence += (p.exp() * (p - q)).sum().item()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(found)
    return divergence / tokens, same / tokens, tokens
