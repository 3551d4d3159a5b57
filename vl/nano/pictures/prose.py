"""The text on pictures: lines that stand alone, running text, and what receipts, signs and windows say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.english import belongs, clock, draw_letters, draw_run, familiar, names, phrases, vocabulary
from vl.nano.pictures.fonts import LETTERS
from vl.nano.pictures.pen import Type

_COMMA = 0.1  # how often a comma parts two phrases
_RUNS = 0.65  # how much of running text is words that follow one another
_SLOT = re.compile(r"\{([A-Za-z-]+)\}")
# Letters whose two cases look alike, and l, i, o, 0, 1 that look like one another, cannot be read off a random string.
_UPPER, _LOWER, _DIGITS = "ABDEFGHJKLMNPQRTY", "abdefghjkmnpqrty", "0123456789"
_ABROAD = 0.1  # of the random strings of letters, those with letters beyond ASCII
_MARKS = "$#*.!?+%&@£€~^"  # one by itself, or several alike: who reads them has to find their end
_SIDE_BY_SIDE = 64  # how often texts are drawn to find one of the part; one in four is, or three


class Prose:
    """Draws what is printed: texts of a `part`, one of `fonts.FACES`, see `english.belongs`."""

    def __init__(self, rng: Generator, part: str = "all") -> None:
        self.rng, self.part = rng, part

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def whole(self, low: int, high: int | None = None) -> int:
        """A whole number from `low` to below `high`, or from 0 to below `low`."""
        return int(self.rng.integers(low, high))

    def word(self) -> str:
        """Half of the time one of the common two thousand and their like, else a rarer one."""
        return vocabulary(self.part).draw(self.rng)

    def filled(self, pattern: str) -> str:
        """A pattern of `phrases.toml` with its slots filled."""
        return _SLOT.sub(lambda slot: self.slot(slot[1]), pattern)

    def slot(self, name: str) -> str:
        """What stands for a slot: one of a list of `phrases.toml`, a word, a name, a number or random letters."""
        if name in phrases():
            return self.usual(name)
        return getattr(self, f"_{name}")() if name in _DRAWN else self._lettered(name)

    def line(self, words: int) -> list[str]:
        """What stands alone on a sign or a label, up to so many words of it, none of them of another part."""
        return self._ours(lambda: self._line(words))

    def usual(self, name: str) -> str:
        """One of a list of `phrases.toml`."""
        return self.filled(pick(self.rng, phrases()[name]))

    def fitted(self, draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
        """Draws texts until one fits; after eight, single short words in the case of the last."""
        for _ in range(8):
            if fits(text := draw()):
                return text
        short = [word for word in familiar(self.part) if len(word) <= 4]
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
        """A sentence of `count` words with their punctuation: words as they follow one another, and other things."""
        return self._ours(lambda: self._sentence(count))

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
        if style < 0.35:
            return self.usual("address")
        if style < 0.7:
            return self.usual("date") if style < 0.5 else f"{self.usual('date')} {self.usual('time')}"
        return self.usual("phone") if style < 0.8 else f"{self.usual('slips')} {self.whole(1, 10**7)}"

    def thanks(self) -> str:
        """The last line of a receipt."""
        return self.usual("thanks") if self.chance(0.5) else " ".join(self.sentence(self.whole(2, 5)))

    def sign_words(self, count: int) -> list[str]:
        """Up to `count` words of a sign, half of them in upper case, some of them numbers or times."""
        if self.chance(0.35):
            words = self.usual("sign").split()[:count]
        else:
            words = [self.word() for _ in range(count)]
            if count > 1 and self.chance(0.4):
                words[self.whole(1, count)] = clock(self.rng) if self.chance(0.3) else self.number()
            if count > 1 and self.chance(0.2):
                words = [*self.usual("sign-begins").split(), *words[1:]][:count]
        if self.chance(0.15):
            words[-1] += "!"
        style = self.rng.random()
        if style < 0.5:
            return [word.upper() for word in words]
        return [word[0].upper() + word[1:] for word in words] if style < 0.75 else words

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

    def _ours(self, draw: Callable[[], list[str]]) -> list[str]:
        """The first of the texts drawn that is of the part."""
        for _ in range(_SIDE_BY_SIDE):
            if belongs(" ".join(words := draw()), self.part):
                break
        return words

    def _sentence(self, count: int) -> list[str]:
        words: list[str] = []
        while len(words) < count:
            if words and self.chance(_COMMA) and words[-1][-1].isalnum():
                words[-1] += ","
            left = count - len(words)
            if self.chance(_RUNS):
                words += draw_run(self.rng, min(left, self.whole(2, 9)), self.part)
            else:
                drawn = self.usual("running").split()
                words += drawn if len(drawn) <= left else [self.word()]
        words[0] = re.sub("[A-Za-z]", lambda letter: letter[0].upper(), words[0], count=1)
        words[-1] += self.usual("endings")
        return words

    def _line(self, words: int) -> list[str]:
        style = self.rng.random()
        if style < 0.3:
            return self._cased(draw_run(self.rng, words, self.part))
        if style < 0.45:
            return self._cased([self.word() for _ in range(words)])
        if style < 0.8:
            drawn = self.usual("line").split()
            return drawn[:words] if self.chance(0.5) else drawn[-words:]
        return [self._random_string() for _ in range(words)]

    def _cased(self, words: list[str]) -> list[str]:
        """The words as they are, as a sentence, as a title or in upper case."""
        style = self.rng.random()
        if style < 0.35:
            return words
        if style < 0.6:
            words[-1] += pick(self.rng, ("", ".", ".", ",", "!", "?", ":", ";", "..."))
            return [words[0][0].upper() + words[0][1:], *words[1:]]
        return [word[0].upper() + word[1:] for word in words] if style < 0.8 else [word.upper() for word in words]

    def _random_string(self) -> str:
        """Letters, digits or both, of which no part helps to read another."""
        style = self.rng.random()
        if style < 0.3:
            return self.number() if self.chance(0.5) else self.usual("money")
        if style < 0.5:
            return self.usual("code")
        if style < 0.6:
            return self._marks()
        upper = style < 0.8
        alphabet = _UPPER if upper else _LOWER
        if self.chance(_ABROAD):
            alphabet += LETTERS.upper().replace("S", "") if upper else LETTERS.lower()
        return draw_letters(self.rng, alphabet, self.whole(3, 9))

    def _marks(self) -> str:
        return pick(self.rng, _MARKS) * (1 if self.chance(0.4) else self.whole(2, 7))

    def _lettered(self, name: str) -> str:
        """A name of a kind of `english.names`, without what follows a comma."""
        return pick(self.rng, names(name, self.part)).split(",")[0]

    def _word(self) -> str:
        return self.word()

    def _Word(self) -> str:
        return self.word().capitalize()

    def _WORD(self) -> str:
        return self.word().upper()

    def _run(self) -> str:
        return " ".join(draw_run(self.rng, self.whole(2, 7), self.part))

    def _number(self) -> str:
        return self.number()

    def _year(self) -> str:
        return str(self.whole(1500, 2100))

    def _clock(self) -> str:
        return clock(self.rng)

    def _price(self) -> str:
        return f"{self.price() / 100:,.2f}"

    def _hour(self) -> str:
        return str(self.whole(1, 13))

    def _two(self) -> str:
        return f"{self.whole(100):02d}"

    def _mm(self) -> str:
        return f"{self.whole(1, 13):0{1 + self.whole(2)}d}"

    def _dd(self) -> str:
        return f"{self.whole(1, 32):02d}"

    def _house(self) -> str:
        return str(self.whole(1, 400))

    def _digits(self) -> str:
        return draw_letters(self.rng, _DIGITS, self.whole(2, 7))

    def _letter(self) -> str:
        return draw_letters(self.rng, _UPPER, 1)

    def _letters(self) -> str:
        return draw_letters(self.rng, _LOWER, self.whole(2, 6))

    def _LETTERS(self) -> str:
        return draw_letters(self.rng, _UPPER, self.whole(1, 4))

    def _postcode(self) -> str:
        if self.chance(0.5):
            return str(self.whole(10000, 99999))
        return f"{self._LETTERS()}{self._two()} {self.whole(1, 9)}{self._LETTERS()}"

    def _serial(self) -> str:
        """Letters and digits without any order, such as no reader can guess."""
        return draw_letters(self.rng, _UPPER + _DIGITS[2:], self.whole(4, 11))

    def _user(self) -> str:
        first, last = self._lettered("first").lower(), self._lettered("last").lower()
        return pick(self.rng, (first, f"{first[0]}{last}", f"{first}.{last}", self.word()))


_DRAWN = {
    "word", "Word", "WORD", "run", "number", "year", "clock", "price", "hour", "two", "mm", "dd", "house", "digits",
    "letter", "letters", "LETTERS", "postcode", "serial", "user", "marks",
}  # fmt: skip
