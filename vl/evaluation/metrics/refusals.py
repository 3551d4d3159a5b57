"""Answers that decline to answer."""

from __future__ import annotations

import re

_DECLINES = re.compile(
    r"\b(?:see|find|recogni[sz]e|know) (?:no image|no picture|nothing|of nothing)\b"
    r"|\b(?:no|without an) (?:image|picture) (?:is|was|has been|to|attached|given|here)\b"
    r"|\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to) "
    r"(?:see|tell|say|identify|recogni[sz]e|describe|answer|determine|make out)\b"
    r"|\b(?:do not|don't) (?:know|recogni[sz]e)\b",
    re.IGNORECASE,
)


def declines(answer: str) -> bool:
    """Whether an answer says that there is nothing to see, or that one cannot tell, in one sentence at the beginning.

    What is read off a picture may say such things, too: an answer that goes on behind the sentence does not decline.
    """
    first, _, rest = answer.strip().partition(".")
    return bool(_DECLINES.search(first.replace("\u2019", "'"))) and len(rest.split()) <= 12 and '"' not in answer
