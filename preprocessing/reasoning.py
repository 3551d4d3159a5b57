"""What a model thinks before it answers: the tokens around it, and the template that writes it.

As templates of reasoning models have it, an assistant's message may have `reasoning_content`, which stands between
`<think>` and `</think>` before its text. A conversation that is answered is written without what was thought earlier;
one that is learnt from, with `preserve_thinking`, has all of it.
"""

from __future__ import annotations

from typing import NamedTuple

from preprocessing.template import DEFAULT_TEMPLATE, ChatTemplate
from preprocessing.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"

_HEADER = "{{- '<beginning_of_sentence>' + headers[message['role']] + '\\n' -}}\n"
_THOUGHT = (
    "        {%- if preserve_thinking and message['reasoning_content'] -%}\n"
    f"            {{{{- '{OPEN}' + message['reasoning_content'] + '{CLOSE}' -}}}}\n"
    "        {%- endif -%}\n"
)
REASONING_TEMPLATE = DEFAULT_TEMPLATE.replace(_HEADER, _HEADER + _THOUGHT)
"""The released format, with what an assistant thought before its text."""


class Markers(NamedTuple):
    """The ids of the tokens between which a model thinks."""

    open: int
    close: int


def find_markers(tokenizer: Tokenizer, template: ChatTemplate) -> Markers | None:
    """Those of a checkpoint whose vocabulary has both as tokens and whose template writes them; None for others."""
    opening, closing = tokenizer.token_id(OPEN), tokenizer.token_id(CLOSE)
    if opening is None or closing is None or CLOSE not in template.source:
        return None
    return Markers(opening, closing)
