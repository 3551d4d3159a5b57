"""How much of what was hidden an answer gives back, from 0 to 1."""

from __future__ import annotations

import re

_REFUSALS = (
    *("sorry", "apologize", "apologise", "apologies", "no previous conversation", "don't have any previous"),
    *("抱歉", "对不起", "没有之前的对话"),
)
_ITEM = re.compile(r"\s*\d+\s*[.)、．]\s*(.*\S)")
_PHRASES = re.compile(r"[,，\n]")
_STOPS = " \t.。"


def value_score(value: str, answer: str) -> float:
    """1 if `value` stands in the answer as a number of its own, and not as a part of a longer one; else 0."""
    return float(re.search(rf"(?<!\d){re.escape(value)}(?!\d)", answer) is not None)


def repeat_score(label: str, answer: str) -> float:
    """The share of the parts of `label` that the answer has word for word, as MR-NIAH scores them.

    The parts are a list's items without their numbers, or the lines and comma-separated phrases of a verse, without
    their full stops. An answer that apologises, or says that there was no conversation before, scores 0.
    """
    said = answer.lower()
    if any(refusal in said for refusal in _REFUSALS):
        return 0.0
    parts = label_parts(label)
    return sum(part in answer for part in parts) / len(parts) if parts else 0.0


def label_parts(label: str) -> list[str]:
    """What an answer has to repeat of a label, see `repeat_score`."""
    lines = [line for line in label.splitlines() if line.strip()]
    items = [_ITEM.fullmatch(line) for line in lines]
    parts = [item[1] for item in items if item] if all(items) else _PHRASES.split(label)
    return [part for given in parts if (part := given.strip(_STOPS))]
