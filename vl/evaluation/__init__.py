"""Scoring a model: metrics, built-in tasks on held-out pictures, the user's own data, and pages of what went wrong.

Example:

    from vl.evaluation import evaluate, evaluate_file

    evaluate(model, "words", count=100).scores            # {"cer": ..., "wer": ..., "exact": ...}
    for result in evaluate_file(model, "questions.jsonl"):
        print(result.task, result.scores, len(result.errors))
"""

from vl.evaluation.confidence import Confidence, confidence, draw_confidence
from vl.evaluation.datafile import count_records, read_records
from vl.evaluation.evaluate import Result, evaluate, evaluate_file
from vl.evaluation.examples import Example, Row
from vl.evaluation.gallery import render_gallery
from vl.evaluation.metrics import METRICS, Metric, Ratio, label
from vl.evaluation.output import OutFolder
from vl.evaluation.tasks import Question, Target, Task, find_task, find_tasks

__all__ = [
    "METRICS",
    "Confidence",
    "Example",
    "Metric",
    "OutFolder",
    "Question",
    "Ratio",
    "Result",
    "Row",
    "Target",
    "Task",
    "confidence",
    "count_records",
    "draw_confidence",
    "evaluate",
    "evaluate_file",
    "find_task",
    "find_tasks",
    "label",
    "read_records",
    "render_gallery",
]
