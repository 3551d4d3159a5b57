"""A tokenizer from the older files: `vocab.json` and `merges.txt`, with the added tokens in the files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from preprocessing.errors import InputError
from preprocessing.template import read_json

VOCABULARY, MERGES = "vocab.json", "merges.txt"
_CONFIG, _ADDED, _SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_OPTIONS = ("lstrip", "rstrip", "single_word", "normalized", "special")  # of an added token


def read_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, as the release's `tokenizer_class` says, with every added token at its released id.

    Added tokens and their ids come from `added_tokens.json` and from `added_tokens_decoder` in
    `tokenizer_config.json`; that file and `special_tokens_map.json` name the special ones. A special token that no
    file gives an id is left out.

    Raises:
        InputError: if a file is missing or damaged, or files disagree about an id.
    """
    config = read_json(folder / _CONFIG)
    decoder = _decoder(config, folder / _CONFIG)
    vocabulary = read_json(folder / VOCABULARY)
    added = read_json(folder / _ADDED)
    # In the vocabulary itself added tokens keep their ids: the library would number them on from its end.
    ids = _joined({VOCABULARY: vocabulary, _ADDED: added, _CONFIG: {t: i for t, (i, _) in decoder.items()}}, folder)
    special = _special(config) | _special(read_json(folder / _SPECIAL))
    tokens = [
        AddedToken(token, **{"special": token in special, **(decoder[token][1] if token in decoder else {})})
        for token in sorted(added.keys() | decoder.keys() | (special & ids.keys()), key=ids.__getitem__)
    ]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=_merges(folder / MERGES, ids)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(tokens)
    return tokenizer


def _decoder(config: Mapping[str, Any], path: Path) -> dict[str, tuple[int, dict[str, bool]]]:
    """The `added_tokens_decoder`: token -> its id and options."""
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, Mapping) or not all(key.isdecimal() and _texts(entry) for key, entry in entries.items()):
        raise InputError(f"{path}: added_tokens_decoder must map ids to tokens; get the file again")
    return {
        _texts(entry)[0]: (int(key), {option: bool(entry[option]) for option in _OPTIONS if option in entry})
        for key, entry in entries.items()
    }


def _joined(files: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, int]:
    """The ids of all files' tokens."""
    joined: dict[str, int] = {}
    for name, ids in files.items():
        for token, number in ids.items():
            if type(number) is not int or not 0 <= number < 2**31 or joined.setdefault(token, number) != number:
                raise InputError(
                    f"{folder / name}: {token!r} has the id {number!r}, which is none or not that of another file; "
                    "get the tokenizer's files again"
                )
        if len(set(joined.values())) < len(joined):
            raise InputError(f"{folder / name}: two tokens have one id; get the tokenizer's files again")
    return joined


def _special(config: Mapping[str, Any]) -> set[str]:
    """The special tokens that a file names: `bos_token` and its like, and `additional_special_tokens`."""
    named = [value for key, value in config.items() if key.endswith("_token")]
    more = config.get("additional_special_tokens")
    return {text for value in [*named, *(more if isinstance(more, list) else [])] for text in _texts(value)}


def _texts(value: Any) -> list[str]:
    """The text of a token that is given as itself or as {"content": ...}; nothing for anything else."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return [value] if isinstance(value, str) and value else []


def _merges(path: Path, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs to merge, first ones first; the library ends the process's thread on one that the vocabulary lacks."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {VOCABULARY} needs it, get the file again") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise InputError(f"{path}, line {number}: {line!r} merges what is not in {VOCABULARY}; get the files again")
        merges.append((left, right))
    return merges
