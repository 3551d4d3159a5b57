"""What the built-in tasks count as right."""

from __future__ import annotations

import pytest
from PIL import Image

from vl.evaluation.metrics import METRICS
from vl.nano import tasks
from vl.nano.pictures.questions import Asked


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        (Asked("How many?", "40", "counting"), "40", "41"),
        (Asked("Which year?", "1984", "vqa"), "1984", "1985"),
        (Asked("How much is it?", "$40.00", "chart"), "$41.00", "$43.00"),
        (Asked("How much is it?", "40", "chart", within=0.5), "40.5", "41"),
        (Asked("Is it?", "yes", "vqa"), "yes", "no"),
        (Asked("Which row?", "Q2", "table"), "Q2", "Q3"),
    ],
)
def test_counts_and_years_are_exact_and_values_are_not(asked: Asked, right: str, wrong: str) -> None:
    _, references = tasks._measure(Image.new("RGB", (8, 8)), asked)
    for metric in (METRICS["chart"], METRICS["table"]):
        assert metric.right(metric.score(references, right))
        assert metric.right(metric.score(references, asked.answer))
        assert not metric.right(metric.score(references, wrong))


@pytest.mark.parametrize("name", ["charts", "tables", "receipts"])
def test_tasks_of_relaxed_accuracy_are_put_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked("How many?", "40", "counting")
    for ask in ("ask_chart", "ask_table", "ask_page"):
        monkeypatch.setattr(tasks, ask, lambda *_, **__: asked)
    assert tasks.TASKS[name].draw(0, None).references == ("40 ± 0",)
