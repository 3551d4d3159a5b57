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


def fitted(rng: Generator, draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
    """Draws texts until one fits; after eight, single short words in the case of the last."""
    for _ in range(8):
        if fits(text := draw()):
            return text
    short = [word for word in word_list() if len(word) <= 4]
    words = (short[int(i)] for i in rng.permutation(len(short)))
    cased = (word.upper() if text.isupper() else word.capitalize() if text[0].isupper() else word for word in words)
    return next(filter(fits, cased))


def fit_word(rng: Generator, kind: Type, word: str, width: float) -> str:
    """The word, or a shorter one where it is wider than `width`."""
    return fitted(rng, lambda: word, lambda text: kind.width(text) <= width)


def set_rows(rng: Generator, kind: Type, words: Sequence[str], width: float) -> list[str]:
    """The words in lines of at most `width` px, too wide ones for others."""
    return [" ".join(line) for line in kind.wrap([fit_word(rng, kind, word, width) for word in words], width)]


def number(rng: Generator) -> str:
    """A number of up to five digits, some of them with thousands separated or with decimals."""
    whole = int(rng.integers(10 ** int(rng.integers(1, 6))))
    style = rng.random()
    if style < 0.2:
        return f"{whole % 1000}.{int(rng.integers(1, 100)):02d}"
    return f"{whole:,}" if style < 0.4 else str(whole)


def price(rng: Generator) -> int:
    """An amount in cents: about as often below one, ten and a hundred units of money."""
    return int(np.exp(rng.uniform(np.log(30), np.log(19999))))


def titled(rng: Generator, most: int) -> str:
    """One to `most` words as in a heading."""
    words = [pick(rng, word_list()) for _ in range(int(rng.integers(1, most + 1)))]
    text = " ".join(words)
    return pick(rng, (text.upper(), text.capitalize(), " ".join(word.capitalize() for word in words)))


def name(rng: Generator, kind: Type, room: float, used: set[str]) -> str:
    """What an entry is called, in `room` px: one to three words, none of them in `used`, to which they are added."""

    def fits(text: str) -> bool:
        return kind.width(text) <= room and used.isdisjoint(text.lower().split())

    text = fitted(rng, lambda: titled(rng, 3), fits)
    used.update(text.lower().split())
    return text


def sentence(rng: Generator, count: int) -> list[str]:
    """A sentence of `count` words with their punctuation: phrases of slots filled at random."""
    words: list[str] = []
    while len(words) < count:
        if words and rng.random() < _COMMA and words[-1][-1].isalnum():
            words[-1] += ","
        pattern = pick(rng, phrases()["running"])
        if len(words) + pattern.count(" ") + 1 > count:
            pattern = "W"
        words += re.sub("[A-Z]", lambda slot: _slot(rng, slot[0]), pattern).split()
    words[0] = re.sub("[A-Za-z]", lambda letter: letter[0].upper(), words[0], count=1)
    words[-1] += pick(rng, phrases()["endings"])
    return words


def paragraph(rng: Generator, count: int) -> list[str]:
    """`count` words with their punctuation in whole sentences."""
    words: list[str] = []
    while left := count - len(words):
        length = int(rng.integers(3, 15))
        words += sentence(rng, length if left >= length + 3 else left)
    return words


def address(rng: Generator) -> str:
    """What stands below a shop's name: a street, a date with or without time, or a slip's number."""
    style = rng.random()
    if style < 0.3:
        return f"{int(rng.integers(1, 400))} {pick(rng, word_list()).capitalize()} {pick(rng, phrases()['streets'])}"
    date = f"{int(rng.integers(1, 13)):02d}/{int(rng.integers(1, 29)):02d}/{int(rng.integers(1990, 2031))}"
    if style < 0.7:
        return date if style < 0.5 else f"{date} {clock(rng)}"
    return f"{pick(rng, phrases()['slips'])} {int(rng.integers(1, 10**7))}"


def thanks(rng: Generator) -> str:
    """The last line of a receipt."""
    return pick(rng, phrases()["thanks"]) if rng.random() < 0.5 else " ".join(sentence(rng, int(rng.integers(2, 5))))


def sign_words(rng: Generator, count: int) -> list[str]:
    """`count` words of a sign, most of them in upper case, some of them numbers or times."""
    words = [pick(rng, word_list()) for _ in range(count)]
    if count > 1 and rng.random() < 0.4:
        words[int(rng.integers(1, count))] = clock(rng) if rng.random() < 0.3 else number(rng)
    if count > 1 and rng.random() < 0.2:
        words[0] = pick(rng, phrases()["sign-begins"])
    if rng.random() < 0.15:
        words[-1] += "!"
    return [word.upper() for word in words] if rng.random() < 0.8 else [word.capitalize() for word in words]


def window_title(rng: Generator) -> str:
    """A window's title: a few words, a file's name, or both a document and a program."""
    style, word = rng.random(), pick(rng, word_list())
    if style < 0.2:
        return f"{word}.{pick(rng, phrases()['suffixes'])}"
    return f"{word} - {pick(rng, word_list()).capitalize()}" if style < 0.4 else titled(rng, 3)


def label(rng: Generator, kind: str) -> str:
    """An entry of a "menu" bar, or the label of a "button"."""
    return pick(rng, phrases()[kind]) if rng.random() < 0.55 else pick(rng, word_list()).capitalize()


def setting(rng: Generator) -> str:
    """A setting's value: on or off, a number, a share, a time or a word."""
    usual = ("On", "Off", clock(rng), f"{int(rng.integers(101))}%", number(rng))
    return pick(rng, usual) if rng.random() < 0.65 else pick(rng, word_list()).capitalize()


def _slot(rng: Generator, kind: str) -> str:
    if kind in "WCU":
        word = pick(rng, word_list())
        return word if kind == "W" else word.upper() if kind == "U" else word.capitalize()
    others = {"Y": str(int(rng.integers(1500, 2100))), "P": f"{price(rng) / 100:.2f}", "H": clock(rng)}
    return others.get(kind) or number(rng)
