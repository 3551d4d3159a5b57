from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vl
from preprocessing.chat import Conversation
from vl.evaluation import METRICS, Question, Row, Target, Task, evaluate, evaluate_file
from vl.evaluation.metrics.relaxed import without_tolerance
from vl.nano.mix import SMALL, Mix
from vl.nano.render import render
from vl.nano.tasks import TASKS

MIX = Mix(sizes=SMALL, fonts=os.environ.get("VL_EMOJI_FONTS"))
MakeParrot = Callable[[Callable[[Conversation], str]], Any]


def image_of(conversation: Conversation) -> bytes:
    """The pixels of the one image; of a question without, none."""
    for image in conversation.images:
        assert isinstance(image, Image.Image)
        return image.tobytes()
    return b""


def truth(task: str, count: int) -> dict[bytes, str]:
    """The right answer of each picture."""
    try:
        examples = list(islice(TASKS[task].examples(MIX), count))
    except vl.ConfigError as error:
        pytest.skip(str(error))
    return {image_of(Conversation.of(e.messages)): without_tolerance(e.references[0]) for e in examples}


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_model_scores_full_marks(task: str, parrot: MakeParrot) -> None:
    answers, seen = truth(task, 10), []
    model = parrot(lambda conversation: answers[image_of(conversation)])
    result = evaluate(model, task, count=10, batch_size=4, mix=MIX, on_rows=lambda rows: seen.append(len(rows)))
    metric = METRICS[TASKS[task].metric]
    assert result.scores == {name: float(name not in metric.errors) for name in result.scores}
    assert seen == [4, 4, 2]
    assert sum(model.batches) == 10
    assert max(model.batches) <= 4, "never more at once than the batch size"
    assert model.new_tokens == {TASKS[task].max_new_tokens}
    assert not result.failures
    assert not result.errors
    assert all(row.right and (row.sizes or task == "no-image") for row in result.rows)
    assert all(target["met"] for target in result.summary()["targets"].values())
    assert set(result.summary()["targets"]) == {target.score for target in TASKS[task].targets}


def test_wrong_answers_cost_their_share_and_come_worst_first(parrot: MakeParrot) -> None:
    answers = truth("words", 6)
    said = dict(zip(answers, ["", *list(answers.values())[1:5], list(answers.values())[5] + "x"], strict=True))
    result = evaluate(parrot(lambda c: said[image_of(c)]), "words", count=6, mix=MIX)
    assert [row.id for row in result.failures] == ["words-0", "words-5"]
    assert result.scores["exact"] == pytest.approx(4 / 6)
    assert result.failures[0].scores["cer"].value == 1
    (target,) = result.summary()["targets"].values()
    assert target == {"at_most": 0.02, "met": False}
    assert result.to_json()["rows"][5]["answer"] == said[list(said)[5]]
    again = result.failures[0].pictures()[0]
    assert isinstance(again, Image.Image)
    assert again.tobytes() == next(iter(answers)), "the picture can be had again"


def test_evaluation_pictures_are_not_training_pictures() -> None:
    first = next(TASKS["scenes"].examples(MIX))
    picture = image_of(Conversation.of(first.messages))
    assert all(render(seed, 0, MIX.only("scenes")).image.tobytes() != picture for seed in range(20))


def test_unknown_task(parrot: MakeParrot) -> None:
    with pytest.raises(vl.ConfigError, match="choose from scenes, relations"):
        evaluate(parrot(lambda _: ""), "poems")
    with pytest.raises(vl.ConfigError, match="unknown metric"):
        Task("poems", "", "beauty", lambda index, mix: Question([], ()))


def test_a_task_of_ones_own(parrot: MakeParrot) -> None:
    def draw(index: int, mix: Mix) -> Question:
        return Question([{"role": "user", "content": f"What is {index} + 1?"}], (str(index + 1),))

    task = Task("sums", "adding one", "counting", draw, (Target("accuracy", 0.75),), max_new_tokens=3)
    model = parrot(lambda c: str(min(3, 1 + int(c.messages[0]["content"][0]["text"].split()[2]))))
    result = evaluate(model, task, count=4)
    assert result.scores == {"accuracy": 0.75, "mean_absolute_error": 0.25}
    assert result.summary()["targets"] == {"accuracy": {"at_least": 0.75, "met": True}}
    assert [row.prompt for row in result.failures] == ["What is 3 + 1?"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks, a record that is no JSON, one whose image is torn, one that is too long, one with a bad reference."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])

    def record(task: str, prompt: str, answer: str, image: str = "red.png") -> str:
        return json.dumps({"image": image, "prompt": prompt, "answer": answer, "task": task})

    lines = [
        record("vqa", "red", "Red."),
        "{",
        record("vqa", "blue", "red", "torn.png"),
        record("vqa", "blue", "red"),
        record("counting", "too long", "3"),
        record("counting", "3", "three"),
        record("counting", "3", "several"),
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path / "data.jsonl"


def test_a_file_of_mixed_tasks_with_bad_records(data: Path, parrot: MakeParrot) -> None:
    batches: list[list[Row]] = []
    model = parrot(lambda c: c.messages[0]["content"][-1]["text"])
    vqa, unread, counting = evaluate_file(model, data, batch_size=8, on_rows=batches.append)
    assert (vqa.task, unread.task, counting.task) == ("data.jsonl: vqa", "data.jsonl", "data.jsonl: counting")
    assert vqa.scores == {"normalised": 0.5, "exact": 0.0}
    assert (vqa.count, [row.line for row in vqa.errors]) == (2, [3])
    assert str(data.parent / "torn.png") in str(vqa.errors[0].error)
    assert counting.scores == {"accuracy": 1.0, "mean_absolute_error": 0.0}
    assert [(row.line, row.error) for row in counting.errors] == [
        (5, "this prompt has too many tokens"),
        (7, "the reference 'several' names no whole number"),
    ]
    assert unread.scores == {}
    assert "not JSON" in str(unread.errors[0].error)
    assert [row.line for row in batches[0]] == [1, 2, 3, 4, 5, 6, 7], "in the file's order"
    assert vqa.rows[0].sizes == ((60, 40),)


def test_count_and_metric_of_a_file(data: Path, parrot: MakeParrot) -> None:
    model = parrot(lambda c: "x")
    results = evaluate_file(model, data, count=1, metric="caption", max_new_tokens=7)
    assert [(result.task, result.metric, len(result.rows)) for result in results] == [("data.jsonl: vqa", "caption", 1)]
    assert model.new_tokens == {7}


def test_an_empty_file(tmp_path: Path, parrot: MakeParrot) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(vl.InputError, match="holds no records"):
        evaluate_file(parrot(lambda _: ""), tmp_path / "empty.jsonl")
