from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import vl
from vl.evaluation import evaluate
from vl.evaluation.tasks import held_out
from vl.training.render import SMALL, Mix, render

MIX = Mix(sizes=SMALL)


@dataclass
class Answer:
    text: str


class Oracle:
    """Answers from the captions, wrongly for every `spoil`-th picture."""

    def __init__(self, task: str, spoil: int = 0) -> None:
        self.samples = held_out(task, MIX)
        self.spoil, self.asked, self.batches = spoil, 0, []  # type: ignore[var-annotated]

    def generate(self, batch: list[Any], max_new_tokens: int) -> list[Answer]:
        self.batches.append(len(batch))
        answers = []
        for messages in batch:
            sample = next(self.samples)
            assert messages[0]["content"][0]["image"].tobytes() == sample.image.tobytes()
            assert len(messages) == 1
            self.asked += 1
            wrong = self.spoil and self.asked % self.spoil == 0
            answers.append(Answer("nothing" if wrong else sample.caption))
        return answers


def test_a_perfect_model_scores_full_marks() -> None:
    seen: list[int] = []
    oracle: Any = Oracle("scenes")
    result = evaluate(oracle, "scenes", count=10, batch_size=4, mix=MIX, on_progress=seen.append)
    assert set(result.scores) > {"objects", "objects_and_positions", "exact", "colour"}
    assert set(result.scores.values()) == {1.0}
    assert oracle.batches == [4, 4, 2]
    assert seen == [4, 8, 10]
    assert all(row.right and row.expected == row.answer for row in result.rows)
    oracle = Oracle("words")
    assert evaluate(oracle, "words", count=6, batch_size=6, mix=MIX).scores == {"cer": 0.0, "exact": 1.0}


def test_wrong_answers_cost_their_share() -> None:
    oracle: Any = Oracle("scenes", spoil=5)
    result = evaluate(oracle, "scenes", count=10, batch_size=10, mix=MIX)
    assert result.scores["objects"] == pytest.approx(0.8)
    assert [row.index for row in result.rows if not row.right] == [4, 9]
    assert result.to_json()["rows"][4]["answer"] == "nothing"


def test_evaluation_pictures_are_not_training_pictures() -> None:
    first = next(held_out("scenes", MIX)).image.tobytes()
    assert all(render(seed, 0, MIX.only("scenes")).image.tobytes() != first for seed in range(20))


def test_unknown_task() -> None:
    oracle: Any = Oracle("words")
    with pytest.raises(vl.ConfigError, match="choose from scenes, words"):
        evaluate(oracle, "poems")
