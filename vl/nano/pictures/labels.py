"""What charts and tables say: names, titles and numbers."""

from __future__ import annotations

from functools import lru_cache

from numpy.random import Generator

from vl.nano.pictures.canvas import COLOURS, pick
from vl.nano.pictures.english import familiar, names, phrases

MIN_SIZE = 12  # px per em of their smallest type
# Colours would name things of other colours, the next four head columns, and questions are made of the others.
_UNFIT = {
    *(*COLOURS, "month", "weekday", "quarter", "year", "title", "titled", "called", "column", "row", "table", "header"),
    *("value", "chart", "highest", "lowest", "first", "second", "third", "fourth", "fifth", "last"),
}
_HEADS = ("mon", "wee", "qua", "yea")  # how the names of columns of months and so on begin
_FUNCTION = 200  # so many of the commonest words mean nothing by themselves


def write_number(value: float, decimals: int, unit: str = "", *, grouped: bool = False) -> str:
    """A number as it is printed: "1,250", "$3.50", "12%". Units other than "$" and "%" are not printed with it."""
    text = f"{value:,.{decimals}f}" if grouped else f"{value:.{decimals}f}"
    return f"${text}" if unit == "$" else f"{text}%" if unit == "%" else text


@lru_cache(maxsize=32)
def _vocabulary(longest: int, part: str, kind: str) -> tuple[str, ...]:
    words = familiar(part)[_FUNCTION:] if kind == "word" else [name.lower() for name in names(kind, part)]
    usable = (word for word in words if word not in _UNFIT and not word.startswith(_HEADS))
    fit = (word for word in usable if 3 <= len(word) <= longest and word.isalpha())
    # Of letters whose two cases look alike, nobody could tell which it is.
    return tuple(word for word in fit if not set(word) <= set("cosuvwxz"))


def draw_words_apart(rng: Generator, count: int, longest: int = 9, part: str = "all", kind: str = "word") -> list[str]:
    """Draws `count` words of 3 to `longest` letters that no one takes for each other: all begin differently.

    They are lower-case words of a part, one of `fonts.FACES`, or names of a kind that `english.names` knows.
    """
    found: dict[str, str] = {}
    while len(found) < count:
        word = pick(rng, _vocabulary(max(4, longest), part, kind))
        found.setdefault(word[:3], word)
    return list(found.values())


def draw_names(
    rng: Generator, count: int, *, ordered: float = 0.4, longest: int = 9, part: str = "all"
) -> tuple[str, tuple[str, ...]]:
    """Draws what the categories are and their names, such as ("month", ("Mar", "Apr", "May")).

    `ordered` is the share of months, weekdays, quarters and years; the others are capitalised words, and names of
    people and countries. They have up to `longest` letters, or 4 if that is less.
    """
    if rng.random() >= ordered:
        named = str(rng.choice(("word", "word", "word", "first", "last", "country"))) if longest >= 6 else "word"
        return "", tuple(word.capitalize() for word in draw_words_apart(rng, count, longest, part, named))
    kind = str(rng.choice(("month", "month", "weekday", "quarter", "year", "year")))
    if kind == "year":
        first = int(rng.integers(1960, 2031 - count))
        return kind, tuple(str(first + i) for i in range(count))
    if kind == "quarter" and count <= 4:
        return kind, tuple(f"Q{i + 1}" for i in range(count))
    kind = "weekday" if kind == "weekday" and count <= 7 else "month"
    usual = phrases()[f"{kind}s"]
    first = int(rng.integers(len(usual) - count + 1))
    short = longest < 9 or rng.random() < 0.6
    return kind, tuple(name[:3] if short else name for name in usual[first : first + count])


def draw_title(rng: Generator, kind: str, part: str = "all") -> str:
    """Draws a title of one to four words; `kind` is what the categories are, "" for nothing in particular."""
    a, b, c = draw_words_apart(rng, 3, part=part)
    title = pick(rng, phrases()["titles-by" if kind else "titles"]).format(a=a, b=b, c=c, kind=kind)
    style = rng.random()
    return title.title() if style < 0.45 else title.upper() if style < 0.55 else title[0].upper() + title[1:]
