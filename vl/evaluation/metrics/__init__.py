"""What counts as right: plain functions of reference and answer, and the registry that names them."""

from vl.evaluation.metrics.captions import named_shapes, right_attributes, rouge_l, scene_matches
from vl.evaluation.metrics.counting import counting_error, counts_right, mean_absolute_error
from vl.evaluation.metrics.distance import edit_distance
from vl.evaluation.metrics.error_rates import character_error_rate, read_text, word_error_rate
from vl.evaluation.metrics.numbers import Quantity, parse_count, parse_quantity
from vl.evaluation.metrics.registry import METRICS, Metric, Ratio, label
from vl.evaluation.metrics.relaxed import relaxed_accuracy, relaxed_match
from vl.evaluation.metrics.vqa import consensus, exact_match, normalise_answer, normalised_match

__all__ = [
    "METRICS",
    "Metric",
    "Quantity",
    "Ratio",
    "character_error_rate",
    "consensus",
    "counting_error",
    "counts_right",
    "edit_distance",
    "exact_match",
    "label",
    "mean_absolute_error",
    "named_shapes",
    "normalise_answer",
    "normalised_match",
    "parse_count",
    "parse_quantity",
    "read_text",
    "relaxed_accuracy",
    "relaxed_match",
    "right_attributes",
    "rouge_l",
    "scene_matches",
    "word_error_rate",
]
