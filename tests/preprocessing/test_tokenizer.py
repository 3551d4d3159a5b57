"""The tokenizer against transformers', and the property that a stream is a decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import InputError, Tokenizer

TEXT = "<beginning_of_sentence>user name=user\n  Où est le 🙂? <image>日本<end_of_sentence>\n"


def test_ids_are_transformers(tokenizer: Tokenizer, backend_json: str) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(backend_json))
    ids = tokenizer.encode(TEXT)
    assert ids == peer.encode(TEXT, add_special_tokens=False)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == peer.decode(ids, skip_special_tokens=skip)
    assert len(tokenizer) == len(peer)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_long_texts_are_tokens_like_short_ones(tokenizer: Tokenizer) -> None:
    text = TEXT * 300  # for which other threads need not wait
    assert tokenizer.encode(text) == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_plain(text) == 300 * tokenizer.encode_plain(TEXT)
    assert len(text) <= len(tokenizer.encode(text)) * tokenizer.longest
    assert tokenizer.longest == len("<beginning_of_sentence>")


def test_special_tokens(tokenizer: Tokenizer) -> None:
    image = tokenizer.token_id("<image>")
    assert image is not None
    assert tokenizer.encode("<image>") == [image]
    assert tokenizer.token_id("<nothing>") is None
    assert tokenizer.decode([image]) == ""
    assert tokenizer.decode([image], skip_special_tokens=False) == "<image>"


@given(st.text(alphabet="aé日🙂 \n\x00\x7f\xa0\xad"))
@settings(max_examples=100, deadline=None)
def test_bytes_of_tokens_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_plain(text))) == text.encode()


def test_every_byte_is_some_tokens(tokenizer: Tokenizer) -> None:
    spelt = [tokenizer.token_bytes(token) for token in range(len(tokenizer))]
    assert {each for each in spelt if len(each) == 1} == {bytes([byte]) for byte in range(256)}
    image = tokenizer.token_id("<image>")
    assert image is not None
    assert tokenizer.token_bytes(image) == b"<image>"
    assert tokenizer.token_bytes(len(tokenizer)) == b""


def test_truncation_and_padding_are_off(backend_json: str) -> None:
    backend = tokenizers.Tokenizer.from_str(backend_json)
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode(TEXT), skip_special_tokens=False) == TEXT


@given(st.lists(st.integers(0, 599), max_size=40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_stream_is_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = tokenizer.stream(skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip)
    assert stream.flush() == ""
    assert not any(piece.endswith("\ufffd") for piece in pieces)


@given(st.text(alphabet="aé日🙂 \n", min_size=1))
@settings(max_examples=100, deadline=None)
def test_stream_emits_whole_characters_at_once(tokenizer: Tokenizer, text: str) -> None:
    stream, said = tokenizer.stream(), ""
    for token in (ids := tokenizer.encode(text)):
        said += stream.push(token)
        assert text.startswith(said)
    assert said == text == tokenizer.decode(ids)


def test_stream_of_bytes(tokenizer: Tokenizer) -> None:
    """A character in four tokens comes with the last of them; a broken one comes with the next good text."""
    rare = "\U000e0041"
    first, *rest = tokenizer.encode(rare)
    assert len(rest) == 3, "the corpus has no such character, so each of its bytes is a token"
    stream = tokenizer.stream()
    assert [stream.push(token) for token in (first, *rest)] == ["", "", "", rare]
    assert [stream.push(token) for token in (first, *tokenizer.encode("a"))] == ["", "\ufffda"]
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"tokenizer\.json: not a valid tokenizer"):
        Tokenizer.load(tmp_path)
