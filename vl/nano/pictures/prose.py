"""The text on printed pages: running text, and what receipts, signs and windows say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.pen import Type
from vl.nano.pictures.words import clock, phrases, word_list

_COMMA = 0.14  # how often a comma parts two phrases


class Prose:
    """Draws what is printed."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def whole(self, low: int, high: int | None = None) -> int:
        """A whole number from `low` to below `high`, or from 0 to below `low`."""
        return int(self.rng.integers(low, high))

    def word(self) -> str:
        return pick(self.rng, word_list())

    def usual(self, name: str) -> str:
        """One of a list of `phrases.toml`."""
        return pick(self.rng, phrases()[name])

    def fitted(self, draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
        """Draws texts until one fits; after eight, single short words in the case of the last."""
        for _ in range(8):
            if fits(text := draw()):
                return text
        short = [word for word in word_list() if len(word) <= 4]
        words = (short[int(i)] for i in self.rng.permutation(len(short)))
        cased = (word.upper() if text.isupper() else word.capitalize() if text[0].isupper() else word for word in words)
        return next(filter(fits, cased))

    def fit_word(self, kind: Type, word: str, width: float) -> str:
        """The word, or a shorter one where it is wider than `width`."""
        return self.fitted(lambda: word, lambda text: kind.width(text) <= width)

    def set_rows(self, kind: Type, words: Sequence[str], width: float) -> list[str]:
        """The words in lines of at most `width` px, too wide ones for others."""
        return [" ".join(line) for line in kind.wrap([self.fit_word(kind, word, width) for word in words], width)]

    def number(self) -> str:
        """A number of up to five digits, some of them with thousands separated or with decimals."""
        whole = self.whole(10 ** self.whole(1, 6))
        style = self.rng.random()
        if style < 0.2:
            return f"{whole % 1000}.{self.whole(1, 100):02d}"
        return f"{whole:,}" if style < 0.4 else str(whole)

    def price(self) -> int:
        """An amount in cents: about as often below one, ten and a hundred units of money."""
        return int(np.exp(self.rng.uniform(np.log(30), np.log(19999))))

    def titled(self, most: int) -> str:
        """One to `most` words as in a heading."""
        words = [self.word() for _ in range(self.whole(1, most + 1))]
        text = " ".join(words)
        return pick(self.rng, (text.upper(), text.capitalize(), " ".join(word.capitalize() for word in words)))

    def name(self, kind: Type, room: float, used: set[str]) -> str:
        """What an entry is called, in `room` px: one to three words that are not in `used`, to which they are added."""

        def fits(text: str) -> bool:
            return kind.width(text) <= room and used.isdisjoint(text.lower().split())

        text = self.fitted(lambda: self.titled(3), fits)
        used.update(text.lower().split())
        return text

    def sentence(self, count: int) -> list[str]:
        """A sentence of `count` words with their punctuation: phrases of slots filled at random."""
        words: list[str] = []
        while len(words) < count:
            if words and self.chance(_COMMA) and words[-1][-1].isalnum():
                words[-1] += ","
            pattern = self.usual("running")
            if len(words) + pattern.count(" ") + 1 > count:
                pattern = "W"
            words += re.sub("[A-Z]", lambda slot: self._slot(slot[0]), pattern).split()
        words[0] = re.sub("[A-Za-z]", lambda letter: letter[0].upper(), words[0], count=1)
        words[-1] += self.usual("endings")
        return words

    def paragraph(self, count: int) -> list[str]:
        """`count` words with their punctuation in whole sentences."""
        words: list[str] = []
        while left := count - len(words):
            length = self.whole(3, 15)
            words += self.sentence(length if left >= length + 3 else left)
        return words

    def address(self) -> str:
        """What stands below a shop's name: a street, a date with or without time, or a slip's number."""
        style = self.rng.random()
        if style < 0.3:
            return f"{self.whole(1, 400)} {self.word().capitalize()} {self.usual('streets')}"
        date = f"{self.whole(1, 13):02d}/{self.whole(1, 29):02d}/{self.whole(1990, 2031)}"
        if style < 0.7:
            return date if style < 0.5 else f"{date} {clock(self.rng)}"
        return f"{self.usual('slips')} {self.whole(1, 10**7)}"

    def thanks(self) -> str:
        """The last line of a receipt."""
        return self.usual("thanks") if self.chance(0.5) else " ".join(self.sentence(self.whole(2, 5)))

    def sign_words(self, count: int) -> list[str]:
        """`count` words of a sign, most of them in upper case, some of them numbers or times."""
        words = [self.word() for _ in range(count)]
        if count > 1 and self.chance(0.4):
            words[self.whole(1, count)] = clock(self.rng) if self.chance(0.3) else self.number()
        if count > 1 and self.chance(0.2):
            words[0] = self.usual("sign-begins")
        if self.chance(0.15):
            words[-1] += "!"
        return [word.upper() for word in words] if self.chance(0.8) else [word.capitalize() for word in words]

    def window_title(self) -> str:
        """A window's title: a few words, a file's name, or both a document and a program."""
        style, word = self.rng.random(), self.word()
        if style < 0.2:
            return f"{word}.{self.usual('suffixes')}"
        return f"{word} - {self.word().capitalize()}" if style < 0.4 else self.titled(3)

    def label(self, kind: str) -> str:
        """An entry of a "menu" bar, or the label of a "button"."""
        return self.usual(kind) if self.chance(0.55) else self.word().capitalize()

    def setting(self) -> str:
        """A setting's value: on or off, a number, a share, a time or a word."""
        usual = ("On", "Off", clock(self.rng), f"{self.whole(101)}%", self.number())
        return pick(self.rng, usual) if self.chance(0.65) else self.word().capitalize()

    def _slot(self, kind: str) -> str:
        if kind in "WCU":
            word = self.word()
            return word if kind == "W" else word.upper() if kind == "U" else word.capitalize()
        others = {"Y": str(self.whole(1500, 2100)), "P": f"{self.price() / 100:.2f}", "H": clock(self.rng)}
        return others.get(kind) or self.number()
