"""Built-in tasks: pictures from seeds that training never sees, answered by the model and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count as naturals
from typing import TYPE_CHECKING, Any

from vl.errors import ConfigError
from vl.evaluation.metrics import attribute_accuracy, character_error_rate, read_text, scene_matches
from vl.training.render import DEFAULT_PROMPT, EVALUATION_SEED, Mix, Sample, render
from vl.training.scenes import SceneFacts

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

# Apart from EVALUATION_SEED itself, on which training watches its progress.
_SEED = EVALUATION_SEED + 1
_NEW_TOKENS = 160


@dataclass(frozen=True)
class Row:
    """One example: the picture is `render(seed, index, mix)`; `right` is an exact match of what the task asks for."""

    index: int
    width: int
    height: int
    prompt: str
    expected: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Result:
    """Scores of one task by name, each between 0 and 1 but for the character error rate, and the rows behind them."""

    task: str
    count: int
    scores: dict[str, float]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: MiniMaxVL,
    task: str,
    count: int = 500,
    batch_size: int = 32,
    *,
    mix: Mix | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Result:
    """Asks the model to describe `count` held-out pictures, greedily, and scores the answers.

    Args:
        task: "scenes" (shapes named with colour, and also with position) or "words" (character error rate).
        count: pictures.
        batch_size: conversations generated at once.
        mix: canvas sizes and content; what the embedded model is trained on by default.
        on_progress: called with the number of answers so far.

    Raises:
        ConfigError: for an unknown task.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
    samples, answers = [], []
    for batch in _batches(task, count, batch_size, mix or Mix()):
        generated = model.generate([sample.question for sample in batch], max_new_tokens=_NEW_TOKENS)
        # Only what the score needs is kept: a thousand pictures of 2016 px do not fit in memory.
        samples += [replace(sample, image=sample.image.resize((1, 1))) for sample in batch]
        answers += [generation.text for generation in generated]
        if on_progress:
            on_progress(len(answers))
    scores, right = TASKS[task](samples, answers)
    rows = tuple(
        Row(i, sample.facts.width, sample.facts.height, sample.prompt, sample.caption, answer, bool(ok))
        for i, (sample, answer, ok) in enumerate(zip(samples, answers, right, strict=True))
    )
    return Result(task, count, scores, rows)


def held_out(task: str, mix: Mix | None = None) -> Iterator[Sample]:
    """The pictures of a task, without end, each with the default prompt."""
    for index in naturals():
        yield replace(render(_SEED, index, (mix or Mix()).only(task)), prompt=DEFAULT_PROMPT)


def _batches(task: str, count: int, size: int, mix: Mix) -> Iterator[list[Sample]]:
    stream = held_out(task, mix)
    for start in range(0, count, size):
        yield [next(stream) for _ in range(min(size, count - start))]


def _score_scenes(samples: list[Sample], answers: list[str]) -> tuple[dict[str, float], list[bool]]:
    scenes = [sample.facts for sample in samples if isinstance(sample.facts, SceneFacts)]
    pairs = list(zip(scenes, answers, strict=True))
    right = [scene_matches(answer, facts) for facts, answer in pairs]
    placed = [scene_matches(answer, facts, positions=True) for facts, answer in pairs]
    exact = [sample.caption == answer.strip() for sample, answer in zip(samples, answers, strict=True)]
    scores = {"objects": _share(right), "objects_and_positions": _share(placed), "exact": _share(exact)}
    return scores | attribute_accuracy(answers, scenes), right


def _score_words(samples: list[Sample], answers: list[str]) -> tuple[dict[str, float], list[bool]]:
    expected = [read_text(sample.caption) for sample in samples]
    read = [read_text(answer) for answer in answers]
    right = [a == b for a, b in zip(expected, read, strict=True)]
    return {"cer": character_error_rate(expected, read), "exact": _share(right)}, right


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


TASKS: dict[str, Callable[[list[Sample], list[str]], tuple[dict[str, float], list[bool]]]] = {
    "scenes": _score_scenes,
    "words": _score_words,
}
