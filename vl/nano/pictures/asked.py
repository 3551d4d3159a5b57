"""A question about a picture."""

from __future__ import annotations

from typing import NamedTuple


class Asked(NamedTuple):
    """What the user asks, the right answer, and the metric of `vl.evaluation` by which answers are judged."""

    prompt: str
    answer: str
    metric: str
