"""English to print: words as often as they are written and one after the other as they are, and names.

Words and pairs of them, with how often books have them, come from the package symspellpy (MIT; SCOWL's words counted in
Google's Books n-grams), names of people, trades, countries and streets from Faker (MIT). Both are in the `train` extra.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, resources, util
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.random import Generator

from vl.errors import ConfigError
from vl.nano.pictures.canvas import pick
from vl.nano.pictures.fonts import PRINTED

COMMON = 2000
"""So many words, the commonest, are in every part: there is no English without them."""
_HELD_OUT = 4  # one text in so many, by its checksum, is kept for testing
# Not to be drawn into an example by chance.
_RUDE = re.compile(
    "fuck|shit|cunt|nigg|rape|rapi(st|ng)|porn|puss|slut|whore|bitch|fag|penis|vagina|anal$|cum$|cock|nazi|sex|erotic"
    "|milf|tits?$|titt|boob|wank|dildo|masturb|orgas|blowjob|handjob|bdsm|horny|nipple|twat$|anus|xxx|incest|bestial"
    "|p(a)?edoph|retard|kike|gook|spics?$|coons?$|dykes?$|trann|dickhead|jizz|nud(e|ity|ist)|bukk|fetish|hentai|voyeur"
)
_ABROAD = ("fr_FR", "de_DE", "es_ES", "sv_SE", "pt_BR", "da_DK", "fi_FI", "es_MX", "no_NO")
_NAMED = {
    "first": (("person.en_US", "first_names"), ("person.en_GB", "first_names")),
    "last": (("person.en_US", "last_names"), ("person.en_GB", "last_names")),
    "first-abroad": tuple((f"person.{place}", "first_names") for place in _ABROAD),
    "last-abroad": tuple((f"person.{place}", "last_names") for place in _ABROAD),
    "job": (("job.en_US", "jobs"),),
    "country": (("address.en_US", "countries"), ("address.en_US", "states")),
    "street": (("address.en_US", "street_suffixes"),),
    "firm": (("company.en_US", "company_suffixes"),),
}


_PRINTABLE = frozenset(PRINTED)


def held_out(text: str) -> bool:
    """Whether a text is one of those that are kept for testing."""
    return crc32(text.encode()) % _HELD_OUT == 0


def belongs(text: str, part: str) -> bool:
    """Whether a text is of a part of them, one of `fonts.FACES`."""
    return part == "all" or held_out(text) == (part == "held-out")


@dataclass(frozen=True)
class Draws:
    """Texts to draw from; `ends` are the running sums of their weights."""

    texts: tuple[str, ...]
    ends: np.ndarray

    def draw(self, rng: Generator) -> str:
        return self.texts[int(np.searchsorted(self.ends, rng.random() * self.ends[-1], "right"))]


@lru_cache(maxsize=1)
def word_list() -> tuple[str, ...]:
    """About four thousand lower-case English words, sorted: what the embedded model's vocabulary was made from."""
    return tuple(resources.files("vl.nano.pictures").joinpath("words.txt").read_text("utf-8").split())


@lru_cache(maxsize=1)
def phrases() -> dict[str, tuple[str, ...]]:
    """The lists of `phrases.toml` by name: words and phrases that pictures print."""
    text = resources.files("vl.nano.pictures").joinpath("phrases.toml").read_text("utf-8")
    return {name: tuple(texts) for name, texts in tomllib.loads(text).items()}


@lru_cache(maxsize=4)
def vocabulary(part: str) -> Draws:
    """The common words and those of a part, lower-case, each drawn by the root of how often it is written.

    So a word that books have a million times is 30 times as likely as one that they have a thousand times: half of what
    is drawn is beyond the ten thousand commonest.

    Raises:
        ConfigError: without the packages of the `train` extra.
    """
    counts = _counts()
    words = [word for rank, word in enumerate(counts) if rank < COMMON or belongs(word, part)]
    return Draws(tuple(words), np.cumsum([counts[word] ** 0.5 for word in words]))


@lru_cache(maxsize=4)
def familiar(part: str) -> tuple[str, ...]:
    """The twenty thousand commonest words, as far as they are common to all or of this part."""
    return tuple(word for rank, word in enumerate(list(_counts())[:20000]) if rank < COMMON or belongs(word, part))


@lru_cache(maxsize=4)
def followers(part: str) -> dict[str, Draws]:
    """What comes after each word, as often as it does, among the words of a part."""
    known, after = set(vocabulary(part).texts), dict[str, tuple[list[str], list[int]]]()
    for line in _read("frequency_bigramdictionary_en_243_342.txt"):
        first, second, count = line.split()
        if first in known and second in known:
            words, counts = after.setdefault(first, ([], []))
            words.append(second)
            counts.append(int(count))
    return {word: Draws(tuple(words), np.array(list(accumulate(counts)))) for word, (words, counts) in after.items()}


@lru_cache(maxsize=32)
def names(kind: str, part: str) -> tuple[str, ...]:
    """Names of a kind, one of `_NAMED`, of a part: in ASCII, or those from abroad with letters beyond it.

    Raises:
        ConfigError: without the packages of the `train` extra.
    """
    found: dict[str, None] = {}
    for module, attribute in _NAMED[kind]:
        try:
            provider = import_module(f"faker.providers.{module}").Provider
        except ImportError as error:
            raise ConfigError(f"no names to print ({error}): pip install 'minimax-vl[train]'") from error
        found |= dict.fromkeys(getattr(provider, attribute))
    few = len(found) < 20  # of these, all are common
    usable = (name for name in found if name.isascii() != kind.endswith("abroad") and _PRINTABLE.issuperset(name))
    return tuple(name for name in usable if few or belongs(name, part))


def draw_run(rng: Generator, count: int, part: str) -> list[str]:
    """`count` words, most of them such as follow one another in books."""
    words = [vocabulary(part).draw(rng)]
    after = followers(part)
    while len(words) < count:
        follow = after.get(words[-1]) if rng.random() < 0.75 else None
        words.append((follow or vocabulary(part)).draw(rng))
    return ["I" if word == "i" else word for word in words]


def clock(rng: Generator) -> str:
    """A time such as "9:05"."""
    return f"{int(rng.integers(24))}:{int(rng.integers(60)):02d}"


def draw_letters(rng: Generator, alphabet: Sequence[str], count: int) -> str:
    """`count` letters of an alphabet."""
    return "".join(pick(rng, alphabet) for _ in range(count))


@lru_cache(maxsize=1)
def _counts() -> dict[str, int]:
    """How often books have each word, the commonest first."""
    pairs = (line.split() for line in _read("frequency_dictionary_en_82_765.txt"))
    return {word: int(count) for word, count in pairs if word.isascii() and word.isalpha() and not _RUDE.match(word)}


def _read(name: str) -> Iterator[str]:
    # Found without an import: the package itself is not wanted, only its lists.
    spec = util.find_spec("symspellpy")
    if spec is None or spec.origin is None:
        raise ConfigError("no English to print: pip install 'minimax-vl[train]' brings symspellpy's lists of words")
    yield from (Path(spec.origin).parent / name).read_text("utf-8-sig").splitlines()
