"""Answers that decline to answer."""

from __future__ import annotations

import re

_SIGHT = (
    "see|tell|say|identify|recogni[sz]e|describe|answer|determine|make out|view|access|open|process|analy[sz]e"
    "|interpret|find|read|discern|detect|help|assist|provide|judge|infer|conclude|comment|confirm|perceive|display"
)
_PICTURE = "image|picture|photo|photograph|attachment|file"
# As models write it, with apostrophes straight: what they cannot do, what is not there, and what cannot be known.
_DECLINES = re.compile(
    rf"\b(?:see|find|recogni[sz]e|know|have|received?|got) no (?:actual |attached )?(?:{_PICTURE})s?\b"
    rf"|(?:\bnot|n't) (?:\w+ )?(?:see|find|have|receive|seen|received|got) (?:any |an? |the )?(?:{_PICTURE})s?\b"
    r"|\b(?:see|find|recogni[sz]e|know|make out) (?:nothing|of nothing)\b"
    rf"|\b(?:no|without an?|without any) (?:{_PICTURE})s? (?:is|was|has|have|are|were|to|attached|given|here|provided"
    r"|uploaded|included|visible|available)\b"
    rf"|\b(?:there is|there's|there are) no (?:{_PICTURE})s?\b"
    rf"|\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to|not possible to|impossible to"
    rf"|hard to|difficult to|not capable of|incapable of|no way to|ability to) (?:\w+ly )?(?:be )?(?:{_SIGHT})"
    r"(?:ed|d|ing)?\b"
    r"|\bcan(?:not|'t| not) be (?:determined|identified|recogni[sz]ed|answered|known|seen|told|read)\b"
    r"|\b(?:do not|don't|did not|didn't) (?:know|recogni[sz]e|understand|have (?:enough|any|the|access))\b"
    r"|\b(?:not (?:enough|sufficient)|insufficient|too little) (?:information|context|detail|data)\b"
    r"|\b(?:am|i'm) not (?:sure|certain)\b|\bno idea\b|\b(?:is|it's|seems|remains) (?:unclear|unknown|not clear)\b"
    rf"|\b(?:please|could you|can you) (?:re-?)?(?:upload|attach|provide|share|send)\b.*\b(?:{_PICTURE})s?\b"
    r"|^(?:unanswerable|unknown|unclear|not applicable|n/a|not sure|no answer)\W*$",
    re.IGNORECASE,
)
_SORRY = re.compile(
    r"^(?:(?:i'm |i am |we're )?(?:very |so )?sorry|i apologi[sz]e|apologies|unfortunately)\W+(?:but\W+)?", re.I
)


def declines(answer: str) -> bool:
    """Whether an answer says that there is nothing to see, or that one cannot tell, in one sentence at the beginning.

    What is read off a picture may say such things, too: an answer that goes on behind the sentence does not decline.
    """
    said = _SORRY.sub("", answer.strip().replace("\u2019", "'"))
    first, _, rest = said.partition(". ")
    return bool(_DECLINES.search(first)) and len(rest.split()) <= 12 and '"' not in answer
