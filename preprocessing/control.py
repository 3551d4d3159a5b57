"""Control tokens come from the chat template alone: whatever spells one in what a user wrote stays text.

The template is rendered with stand-ins (private-use characters that nobody wrote) for every character in a user's words
that could begin a control token. So the template may trim, join, cut or escape what it is given: what spells a control
token in the result was begun by the template itself, and where a stand-in is, there is ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import AddedToken

from preprocessing.errors import InputError

_PRIVATE = range(0xE000, 0xF900)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")


class ControlTokens:
    """The spellings that the tokenizer makes control tokens of.

    `starts`: the characters that they begin with.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        longest_first = sorted(tokens, key=lambda token: -len(token.content))  # as the tokenizer looks for them
        self.starts = sorted({token.content[0] for token in longest_first})
        # Without tokens, nothing matches.
        self._pattern = re.compile("|".join(map(_write_pattern, longest_first)) or r"(?!)")

    def find(self, text: str) -> list[str]:
        """The control tokens that the tokenizer would find in `text`."""
        return self._pattern.findall(text)

    def begins(self, text: str) -> bool:
        """Whether `text` begins with a control token."""
        return self._pattern.match(text) is not None

    def between(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each stretch of ordinary text."""
        start = 0
        for found in self._pattern.finditer(text):
            if start < found.start():
                yield start, found.start()
            start = found.end()
        if start < len(text):
            yield start, len(text)


def is_control(token: AddedToken) -> bool:
    """Whether what was added to a vocabulary steers the model.

    Special tokens do, and others that begin with a sign such as `<`. Those that begin with a letter or a space are
    words, which users may write.
    """
    first = token.content[0]
    return token.special or not (first.isalnum() or first.isspace())


def _write_pattern(token: AddedToken) -> str:
    """What the tokenizer takes as this token: with the white space that it strips, a whole word if it wants one."""
    spelling = re.escape(token.content)
    if token.single_word:
        spelling = rf"(?<!\w){spelling}(?!\w)"
    return ("\\s*" if token.lstrip else "") + spelling + ("\\s*" if token.rstrip else "")


@dataclass(frozen=True)
class StandIns:
    """Characters and the private-use characters that stand for them, in pairs."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def choose(cls, characters: Iterable[str], written: list[str], others: Iterable[str] = ()) -> StandIns | None:
        """Stand-ins for those characters that the `written` texts have; None if they have none.

        They are in none of these texts, nor in any of `others`, not even as JSON's escapes. Raises InputError if there
        are no such characters.
        """
        needed = [character for character in characters if any(character in text for text in written)]
        if not needed:
            return None
        texts = [*written, *others]
        used = set().union(*texts) | {chr(int(code, 16)) for text in texts for code in _ESCAPE.findall(text)}
        unused = (character for character in map(chr, _PRIVATE) if character not in used)
        free = list(islice(unused, len(needed)))
        if len(free) < len(needed):
            raise InputError("the messages have every private-use character (U+E000 to U+F8FF): take some out")
        return cls(tuple(zip(needed, free, strict=True)))

    def hide(self, text: str) -> str:
        """`text` with its characters replaced by their stand-ins."""
        for character, stand_in in self.pairs:
            text = text.replace(character, stand_in)
        return text

    def show(self, text: str) -> str:
        """`hide` undone."""
        for character, stand_in in self.pairs:
            text = text.replace(stand_in, character)
        return text

    def gather(self, text: str) -> str:
        """Rendered text with the stand-ins that a template wrote as JSON's escapes made characters again."""
        for _, stand_in in self.pairs:
            text = text.replace(_escaped(stand_in), stand_in)
        return text

    def within(self, text: str) -> bool:
        """Whether `text` has any of the stand-ins."""
        return any(stand_in in text for _, stand_in in self.pairs)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]
