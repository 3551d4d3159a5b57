"""Answers of a form: which tokens may come next, by llguidance.

It knows the grammar of a JSON schema, a regular expression or a Lark grammar, and follows an answer's bytes through it:
a token may come next if its bytes are part of some text of that form, also where they end inside of a character.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from preprocessing import Processor
from vl.config import VLConfig
from vl.engine.calls import Calls
from vl.engine.grammars import first_line, library, matcher, try_apart
from vl.engine.making import Made
from vl.engine.params import SamplingParams
from vl.engine.sampling import sent
from vl.errors import InputError

_KEPT = 64  # grammars that are ready for the next request, and as many that are known not to be of use
_SMALL = 2**14  # tokens of a vocabulary: in a smaller one a mask is found sooner than another thread wakes up


class Model(Protocol):
    """What is asked of a model."""

    @property
    def config(self) -> VLConfig: ...
    @property
    def processor(self) -> Processor: ...
    @property
    def end_ids(self) -> frozenset[int]: ...


class Form:
    """Follows one answer.

    Args:
        matcher: llguidance's, at the beginning.
    """

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self._followed = 0

    def follow(self, token_ids: Sequence[int]) -> None:
        """Go on to behind these, of which what was there before is known: all that was written."""
        self.matcher.consume_tokens(token_ids[self._followed :])
        self._followed = len(token_ids)

    @property
    def error(self) -> str:
        """Why it cannot be followed any further; "" if it can."""
        return first_line(self.matcher.get_error()) if self.matcher.is_error() else ""


class Forms:
    """Makes `Form`s for the vocabulary of one model, which takes seconds the first time where that is large.

    Args:
        tried: whether whoever asks has made each form before, so that it is certain that it can be.
    """

    def __init__(self, model: Model, *, tried: bool = False) -> None:
        self._model, self._tried = model, tried
        self._making = threading.Lock()  # of `_tokens`
        self._tokens: Any = None
        self._ready = Made[Any](_KEPT)

    def of(self, params: SamplingParams) -> Form | None:
        """What an answer is held to, if to anything. Raises as `form` does."""
        if params.response_format is None and params.calls is None:
            return None
        return self.form(params.response_format, params.calls)

    def form(self, response_format: Mapping[str, Any] | None, calls: Calls | None = None) -> Form:
        """One for a new answer. A new grammar may take seconds, for which no other waits, and so may a bad one, once.

        Args:
            response_format: as `SamplingParams` has checked it.
            calls: that an answer may be instead, or has to be. One of the two at least is given.

        Raises:
            InputError: if it is no schema, expression or grammar, or one that cannot be held to; or the model has no
                end token, with which an answer would end.
            ConfigError: if llguidance is not installed.
        """
        try:
            key = json.dumps(response_format if calls is None else [response_format, calls.key()])
        except RecursionError:
            raise InputError("response_format cannot be held to: it is nested too deeply") from None

        def make() -> Any:
            tokens = self._vocabulary()
            if not self._tried:
                if calls is None:
                    try_apart(key)
                else:
                    self._try_parts(response_format, calls)
            return matcher(tokens, response_format, calls)

        return Form(self._ready.get(hashlib.sha256(key.encode()).digest(), make).deep_copy())

    def _try_parts(self, response_format: Mapping[str, Any] | None, calls: Calls) -> None:
        """Raises InputError naming the form, or the function whose arguments cannot be held to their schema."""
        if response_format is not None and calls.named is None:
            self.form(response_format)
        for function in calls.functions:
            if function.schema is None:
                continue
            try:
                self.form({"type": "json_schema", "json_schema": {"schema": function.schema}})
            except InputError as error:
                why = str(error).removeprefix("response_format ")
                told = f"tools: the parameters of {function.name!r:.80} {why}; or leave strict out"
                raise type(error)(told) from None  # what was not tried is not known to be wrong

    def _vocabulary(self) -> Any:
        """As llguidance has it."""
        llguidance = library()
        if not self._model.end_ids:
            raise InputError(
                "response_format, and calls that have to be made, are for models whose config names an end token: this "
                "one's does not"
            )
        with self._making:
            if self._tokens is None:
                tokens = llguidance.TokenizerWrapper(_Tokens(self._model))
                size = len(tokens.tokens)
                self._tokens = llguidance.LLTokenizer(tokens, n_vocab=size, eos_token=sorted(self._model.end_ids))
            return self._tokens


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, model: Model) -> None:
        spelt = model.processor.tokenizer.spellings(model.config.text.vocab_size)
        self.special_token_ids = [token for token, text in enumerate(spelt) if not text]
        # Each has a name of its own, which is no text: those of one name would all do where a grammar has one of them.
        self.tokens = [text or f"{token}".encode() for token, text in enumerate(spelt)]
        self.eos_token_id = min(model.end_ids)
        self._encode = model.processor.tokenizer.encode_plain

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


@dataclass
class Masks:
    """Which tokens may come next, of a batch.

    Attributes:
        rows: of the batch, those that are held to a form.
        bits: int32 [rows, words] on the host, 32 tokens in each word, the first in its lowest bit.
        errors: by row, why a form cannot be followed any further; its bits are not of use then.
    """

    rows: Sequence[int]
    bits: Tensor
    errors: Mapping[int, str]

    def applied(self, logits: Tensor, *, own: bool = False) -> Tensor:
        """float32 [n, vocab] with -inf for what may not come; `own`: they may be written to."""
        if not self.rows:
            return logits
        forbidden = self._forbidden(logits.shape[-1], logits.device)
        if len(self.rows) == len(logits):
            return (logits.masked_fill_ if own else logits.masked_fill)(forbidden, -torch.inf)
        at = sent(self.rows, torch.int64, logits.device)
        return logits.index_copy(0, at, logits[at].masked_fill(forbidden, -torch.inf))

    def _forbidden(self, vocab: int, device: torch.device) -> Tensor:
        """bool [rows, vocab] of what may not come."""
        if device.type == "cpu":  # NumPy does it in a tenth of the time
            each = np.unpackbits(self.bits.numpy().view(np.uint8), axis=-1, count=vocab, bitorder="little")
            return torch.from_numpy(each).view(torch.bool).logical_not_()
        bits = self.bits.to(device, non_blocking=True)
        order = torch.arange(32, dtype=torch.int32, device=device)
        return ((bits[..., None] >> order) & 1).flatten(1)[:, :vocab] == 0


class Masker:
    """Makes `Masks`, of a large vocabulary on as many cores as there are."""

    def __init__(self) -> None:
        self._executor: Any = None

    def __call__(self, answers: Sequence[tuple[Form | None, Sequence[int]]], logits: Tensor) -> Masks:
        """For answers and what is written of each; `logits` says for how many tokens, and is not waited for."""
        rows = [i for i, (form, _) in enumerate(answers) if form is not None]
        bits = torch.empty(len(rows), -(-logits.shape[-1] // 32), dtype=torch.int32, pin_memory=logits.is_cuda)
        bits.numpy().fill(0)  # in one thread: PyTorch's would wait for each other where the CPUs are taken
        forms = []
        for row in rows:
            form, token_ids = answers[row]
            assert form is not None
            form.follow(token_ids)
            forms.append(form)
        start, size = bits.data_ptr(), 4 * bits.shape[1]
        if len(forms) == 1 or logits.shape[-1] <= _SMALL:
            for i, form in enumerate(forms):
                form.matcher.unsafe_compute_mask_ptr(start + i * size, size)
        elif forms:
            self._executor = self._executor or library().LLExecutor()
            matchers = [(form.matcher, i) for i, form in enumerate(forms)]
            self._executor.unsafe_compute_mask_ptr(matchers, start, size, len(forms))
        return Masks(rows, bits, {row: form.error for row, form in zip(rows, forms, strict=True) if form.error})
