"""Numbers as people write them in answers: words, thousands separators, currencies, percent and units."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

# fmt: off
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
# fmt: on
NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL)} | _TENS
_NOTHING = re.compile(r"\b(?:no|none|nothing)\b")

_SCALES = {
    1e3: ("k", "thousand", "thousands"),
    1e6: ("M", "mn", "mln", "million", "millions"),
    1e9: ("B", "bn", "billion", "billions"),
    1e12: ("T", "tn", "trillion", "trillions"),
}
_SCALE_OF = {name: scale for scale, names in _SCALES.items() for name in names} | {"K": 1e3}
_MONEY_SCALE = {"m": 1e6, "b": 1e9}  # metres and bytes where there is no currency
_UNIT_NAMES = {
    "percent": "%",
    "per cent": "%",
    "pct": "%",
    "US$": "$",
    "usd": "$",
    "dollar": "$",
    "eur": "€",
    "euro": "€",
    "gbp": "£",
    "pound": "£",
}
_MINUS = ("-", "\u2212")
_QUANTITY = re.compile(
    r"(?P<sign>[-+\u2212]|)\s*(?P<currency>(?:[A-Z]{1,2})?[$€£¥₹])?\s*(?P<inner>[-\u2212]?)"
    r"(?P<digits>\d[\d.,'’\s]*|\.\d+)(?:[eE](?P<exponent>[+-]?\d{1,2}))?(?P<unit>[^\d!?:;,]{0,40})"
)
_GROUP_SPACE = re.compile(r"(?<=\d)[\s'’](?=\d{3}(?!\d))")
_GROUPED = re.compile(r"\d{1,3}(?:[.,]\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}")  # 1,234,567 or the Indian 12,34,567


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts: "%", a currency sign, a unit's name in lower case without a plural s, or ""."""

    value: float
    unit: str = ""


def parse_quantity(text: str) -> Quantity | None:
    """The quantity that the whole of `text` writes, or None where it is anything else.

    Reads `1,234.5`, `1.234,5`, `1 234`, `12,34,567`, `-3e2`, `25%`, `$1.2 million`, `12 km`, `seven`. A single comma
    before three digits separates thousands, before any other number of digits it is the decimal point.
    """
    text = text.strip()
    if text.lower() in NUMBER_WORDS:
        return Quantity(NUMBER_WORDS[text.lower()])
    found = _QUANTITY.fullmatch(text)
    value = _value(found["digits"]) if found else None
    if found is None or value is None:
        return None
    scale, unit = _scale_and_unit(found["unit"].strip(" ."), found["currency"])
    sign = -1.0 if found["sign"] in _MINUS or found["inner"] else 1.0
    value = sign * scale * value * 10.0 ** int(found["exponent"] or 0)
    return Quantity(value, unit) if math.isfinite(value) else None


def parse_count(text: str) -> int | None:
    """The first whole number that an answer names, in digits or in words up to ninety-nine; None if it names none.

    "no" and "none" are zero in an answer that holds no number: "No, there are 3" is three.
    """
    words = re.findall(r"\d[\d.,]*|[a-z]+", text.lower())
    for word, after in pairwise([*words, ""]):
        if word[0].isdigit():
            value = _value(word.rstrip(".,"))
            if value is not None and value.is_integer():
                return int(value)
        elif word in _TENS:
            return _TENS[word] + (NUMBER_WORDS[after] if 1 <= NUMBER_WORDS.get(after, 0) <= 9 else 0)
        elif word in NUMBER_WORDS:
            return NUMBER_WORDS[word]
    return 0 if _NOTHING.search(text.lower()) else None


def _value(digits: str) -> float | None:
    digits = _GROUP_SPACE.sub("", digits.strip()).rstrip(".")
    if not re.fullmatch(r"[\d.,]+", digits):
        return None
    if "," in digits and "." in digits:
        point = max(",.", key=digits.rfind)
        whole, _, fraction = digits.rpartition(point)
        if point in whole or not _GROUPED.fullmatch(whole):
            return None
        return float(f"{re.sub('[.,]', '', whole)}.{fraction or '0'}")
    if digits.count(".") != 1 and _GROUPED.fullmatch(digits):
        return float(re.sub("[.,]", "", digits))
    digits = digits.replace(",", ".")
    return float(digits) if digits.count(".") <= 1 and digits != "." else None


def _scale_and_unit(text: str, currency: str | None) -> tuple[float, str]:
    """("million people", None) -> (1e6, "people"); a currency is the unit where there is one."""
    first, _, rest = text.partition(" ")
    scale = _SCALE_OF.get(first) or _SCALE_OF.get(first.lower() if len(first) > 1 else first)
    if scale is None and currency:
        scale = _MONEY_SCALE.get(first)
    name = (text if scale is None else rest).strip().lower()
    name = name[:-1] if len(name) > 2 and name.endswith("s") else name
    unit = currency or name
    return scale or 1.0, _UNIT_NAMES.get(unit, unit)
