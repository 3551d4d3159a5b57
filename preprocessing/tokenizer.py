"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers

from preprocessing.control import ControlTokens, is_control
from preprocessing.errors import InputError
from preprocessing.unicode import well_formed
from preprocessing.vocabulary import MERGES, VOCABULARY, read_vocabulary


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: itself if it prints in Latin-1."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_level()
_LONG = 2**13  # characters, which take a millisecond


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    text = well_formed(text)
    if len(text) < _LONG:
        return backend.encode(text, add_special_tokens=False).ids
    # Of these alone the library lets other threads go on. Not of all: once used, it warns when the process is forked.
    return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


class Tokenizer:
    """A `tokenizers.Tokenizer`: for the released model, a byte-level BPE of 200 064 entries.

    Args:
        backend: the tokenizer itself. Its truncation and padding are switched off.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content.encode() for i, token in added.items()}
        control = {i: token for i, token in added.items() if is_control(token)}
        self.control = ControlTokens(control.values())
        self._control_ids = frozenset(control)
        # The same model and the same steps before it, without a list of tokens to look for.
        self._plain = tokenizers.Tokenizer(backend.model)
        for step in ("normalizer", "pre_tokenizer"):
            if getattr(backend, step) is not None:
                setattr(self._plain, step, getattr(backend, step))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[tokenizers.Tokenizer]]:
        """To pickle and copy it: the backend alone."""
        return type(self), (self.backend,)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From `folder/tokenizer.json` or, where there is none, `vocab.json` and `merges.txt`.

        Raises InputError if they are missing or not a tokenizer.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            if (folder / VOCABULARY).is_file():
                return cls(read_vocabulary(folder))
            raise InputError(f"{path}: no such file; a checkpoint folder needs it, or {VOCABULARY} and {MERGES}")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except BaseException as error:  # tokenizers raises bare Exception, and PanicException, which is none
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InputError(f"{path}: not a valid tokenizer ({error}); get the file again") from None

    def save(self, folder: str | Path) -> None:
        """Write `folder/tokenizer.json`. Raises OSError if it cannot be written."""
        text = self.backend.to_str(pretty=True)  # the library's own `save` raises bare Exception
        Path(folder, "tokenizer.json").write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        """Entries of the vocabulary, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Special tokens are recognised where they are written out, and none is added.

        Lone surrogates become U+FFFD, here as in `encode_plain`.
        """
        return _ids(self.backend, text)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` as ordinary text: the spelling of a special token is not the token."""
        ids = _ids(self._plain, text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # A model that looks words up before it merges finds even these; their characters it does not.
        return [token for character in well_formed(text) for token in self._plain.encode(character).ids]

    @cached_property
    def longest(self) -> int:
        """Characters of text that a token stands for at most."""
        return max(map(len, self.backend.get_vocab()))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text in UTF-8: parts of characters too. A special token is spelt out."""
        spelt = self.backend.id_to_token(token)
        if token in self._added or spelt is None:
            return self._added.get(token, b"")
        if isinstance(self.backend.decoder, tokenizers.decoders.ByteLevel):
            return bytes(_BYTE_OF[character] for character in spelt)
        return self.decode([token]).encode()

    def spellings(self, size: int) -> list[bytes]:
        """`token_bytes` of the first `size` ids; b"" for added tokens, which stand for more than their spelling."""
        return [b"" if token in self._added else self.token_bytes(token) for token in range(size)]

    def token_id(self, token: str) -> int | None:
        """The id of a token such as "<image>", None if the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self, skip_special_tokens)


class TextStream:
    """Decodes ids as they are generated and never emits half a character.

    A byte-level decoder joins the tokens' bytes, so text may be cut wherever a character ends. Tokens whose text ends
    in U+FFFD, which stands for an unfinished character, wait for the next one. All pieces with the flush at the end
    make up exactly `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" if it ends inside a character."""
        self._waiting.append(token_id)
        text = self._tokenizer.decode(self._waiting, self._skip_special_tokens)
        if text.endswith("\ufffd"):
            return ""
        self._waiting.clear()
        return text

    def flush(self) -> str:
        """What still waits, unfinished characters as U+FFFD."""
        text = self._tokenizer.decode(self._waiting, self._skip_special_tokens)
        self._waiting.clear()
        return text
