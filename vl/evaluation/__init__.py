"""Scoring a model on held-out pictures."""

from vl.evaluation.metrics import (
    attribute_accuracy,
    character_error_rate,
    edit_distance,
    named_shapes,
    read_text,
    scene_matches,
)
from vl.evaluation.tasks import TASKS, Result, Row, evaluate

__all__ = [
    "TASKS",
    "Result",
    "Row",
    "attribute_accuracy",
    "character_error_rate",
    "edit_distance",
    "evaluate",
    "named_shapes",
    "read_text",
    "scene_matches",
]
