"""A tokenizer from vocab.json and merges.txt, against transformers' GPT-2 tokenizer of the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import GPT2Tokenizer

from preprocessing import InputError, Tokenizer

TEXT = "<beginning_of_sentence>user name=user\n  Où est le 🙂? <image>日本's 12<end_of_sentence>\n"
RELEASED = {"<beginning_of_sentence>": 1019, "<end_of_sentence>": 1020, "<image>": 1025}
CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_prefix_space": False,
    "bos_token": "<beginning_of_sentence>",
    "eos_token": "<end_of_sentence>",
    "unk_token": "<end_of_document>",
}
DECODER = {
    str(i): {"content": t, "special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    for t, i in RELEASED.items()
}


@pytest.fixture
def folder(tmp_path: Path, backend_json: str) -> Path:
    """The test tokenizer as vocab.json and merges.txt, its special tokens left out."""
    model = json.loads(backend_json)["model"]
    special = {token["content"] for token in json.loads(backend_json)["added_tokens"]}
    put(tmp_path, "vocab.json", {token: number for token, number in model["vocab"].items() if token not in special})
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return tmp_path


def put(folder: Path, name: str, contents: Any) -> None:
    (folder / name).write_text(json.dumps(contents), encoding="utf-8")


def in_decoder(folder: Path) -> None:
    put(folder, "tokenizer_config.json", CONFIG | {"added_tokens_decoder": DECODER})


def in_added_tokens(folder: Path) -> None:
    put(folder, "tokenizer_config.json", CONFIG)
    put(folder, "added_tokens.json", RELEASED)
    put(folder, "special_tokens_map.json", {"additional_special_tokens": ["<image>"], "eos_token": {"content": "x"}})


def in_vocabulary(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    put(folder, "vocab.json", vocabulary | RELEASED)
    put(folder, "tokenizer_config.json", CONFIG | {"additional_special_tokens": ["<image>"]})


@pytest.mark.parametrize("place", [in_decoder, in_added_tokens, in_vocabulary])
def test_released_ids_wherever_the_tokens_are_listed(folder: Path, place: Any) -> None:
    place(folder)
    tokenizer = Tokenizer.load(folder)
    assert {token: tokenizer.token_id(token) for token in RELEASED} == RELEASED
    ids = tokenizer.encode(TEXT)
    assert [i for i in ids if i > 1000] == [1019, 1025, 1020]
    assert tokenizer.decode(ids, skip_special_tokens=False) == TEXT
    assert "<image>" not in tokenizer.decode(ids)


def test_ids_are_transformers(folder: Path) -> None:
    in_vocabulary(folder)
    peer = GPT2Tokenizer.from_pretrained(folder)
    for text in (TEXT, "  two  spaces\n\n\tand 3.14 isn't", "漢字🙂\x00"):
        assert Tokenizer.load(folder).encode(text) == peer.encode(text, add_special_tokens=False)


def test_saved_as_one_file_that_means_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    in_decoder(folder)
    tokenizer, other = Tokenizer.load(folder), tmp_path_factory.mktemp("saved")
    tokenizer.save(other)
    assert [path.name for path in other.iterdir()] == ["tokenizer.json"]
    assert Tokenizer.load(other).encode(TEXT) == tokenizer.encode(TEXT)
    backend = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    assert backend.encode(TEXT, add_special_tokens=False).ids == tokenizer.encode(TEXT)


def test_tokenizer_json_wins(folder: Path, backend_json: str) -> None:
    (folder / "tokenizer.json").write_text(backend_json, encoding="utf-8")
    (folder / "vocab.json").write_text("damaged")
    backend = tokenizers.Tokenizer.from_str(backend_json)
    assert Tokenizer.load(folder).encode(TEXT) == backend.encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("vocab.json", {"a": "0"}, r"vocab\.json: 'a' has the id '0'"),
        ("vocab.json", {"a": 0, "b": 0}, r"vocab\.json: two tokens have one id"),
        ("vocab.json", ["a"], r"vocab\.json: expected a JSON object"),
        ("vocab.json", {"a": 0}, r"merges\.txt, line 2: .* merges what is not in vocab\.json"),
        ("added_tokens.json", {"<image>": 5}, r"added_tokens\.json: two tokens have one id"),
        ("added_tokens.json", {"<image>": -1}, r"added_tokens\.json: '<image>' has the id -1"),
        ("added_tokens.json", {"<image>": 2000}, r"tokenizer_config\.json: '<image>' has the id 1025"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, None),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<image>"]}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": {"content": "<image>"}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"special": True}}}, "added_tokens_decoder"),
    ],
)
def test_damage_names_the_file(folder: Path, name: str, contents: Any, message: str | None) -> None:
    in_decoder(folder)
    put(folder, name, contents)
    if message is None:
        Tokenizer.load(folder)
        return
    with pytest.raises(InputError, match=message):
        Tokenizer.load(folder)


def test_no_merges(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("merges", [[["a", "b"]], ["qq zz"], [5]])
def test_merges_that_a_tokenizer_json_cannot_have(tmp_path: Path, backend_json: str, merges: Any) -> None:
    contents = json.loads(backend_json)
    contents["model"] |= {"vocab": {"a": 0, "b": 1}, "merges": merges}
    put(tmp_path, "tokenizer.json", contents)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a valid tokenizer"):
        Tokenizer.load(tmp_path)
