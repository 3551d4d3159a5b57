"""What answers are held to, as llguidance understands it: schemas, expressions and grammars made its matchers.

It is written in Rust and trusts who writes them: some take it minutes, or more stack than there is, which ends the
process. So what is long is tried in a process of its own first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

from vl.engine.calls import ANSWER, Calls
from vl.engine.making import NotNow
from vl.errors import ConfigError, InputError

_NOT_HELD = "response_format cannot be held to"
_SHORT = 4096  # characters of JSON, in which nothing is deep or large but what `_divides` finds
_STATES = 10_000  # of an automaton that divides: 20 ms, where a million take 5 s and 300 MiB, and seven more than 4 GiB
_MULTIPLE = re.compile(r'"multipleOf": (-?[0-9][-+.0-9eE]*)')
_SECONDS = 10.0  # for a trial
_TRIALS = threading.BoundedSemaphore(2)  # at a time
_BYTES = 4 * 2**30  # of memory, where a system limits that
# A command of its own rather than multiprocessing's 'spawn', which would run the caller's script again.
_COMMAND = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vl.engine.grammars import trial
trial()"""
# Between the parts of a JSON text: a blank, or a new line and its indent; not endless blanks, in which models get lost.
_WHITESPACE = r"(\x20|\x0A\x20{0,32})"


def library() -> Any:
    """llguidance. Raises ConfigError if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise ConfigError(
            f"response_format and strict tools need llguidance ({error}): pip install 'minimax-vl[serve]', or pip "
            "install llguidance"
        ) from error
    return llguidance


def matcher(tokens: Any, response_format: Mapping[str, Any] | None, calls: Calls | None = None) -> Any:
    """llguidance's, at the beginning of an answer.

    Args:
        tokens: its vocabulary.
        response_format: as `SamplingParams` has checked it.
        calls: that an answer may be instead, or has to be. One of the two at least is given.

    Raises:
        InputError: if it is no schema, expression or grammar, or one that cannot be held to.
    """
    made, what = library().LLMatcher, _NOT_HELD if calls is None else "tools cannot be held to"
    try:
        found = made(tokens, json.dumps({"grammars": _parts(response_format, calls)}), log_level=0)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: {first_line(str(error))}") from None
    if found.is_error():
        raise InputError(f"{what}: {first_line(found.get_error())}")
    return found


def _parts(response_format: Mapping[str, Any] | None, calls: Calls | None) -> list[dict[str, Any]]:
    """The grammars of answers, the main one first: of answers of a form, or any, or calls."""
    answer = [] if response_format is None or (calls and calls.named is not None) else [_part(response_format)]
    if calls is None:
        return answer
    main, arguments = calls.grammars(ANSWER if answer else None)
    parts = [{"lark_grammar": main}, *({**each, "name": ANSWER} for each in answer)]
    for name, schema in arguments.items():
        form = {"type": "json_object"} if schema is None else {"type": "json_schema", "json_schema": {"schema": schema}}
        parts.append({**_part(form), "name": name})
    return parts


def _part(response_format: Mapping[str, Any]) -> dict[str, Any]:
    """One grammar, as llguidance has it in JSON."""
    kind = response_format["type"]
    if kind == "regex":
        (found,) = json.loads(library().LLMatcher.grammar_from_regex(response_format["pattern"]))["grammars"]
        return {"lark_grammar": found["lark_grammar"]}
    if kind == "grammar":
        return {"lark_grammar": response_format["grammar"]}
    schema = {"type": "object"} if kind == "json_object" else response_format["json_schema"]["schema"]
    if isinstance(schema, bool):
        if not schema:
            raise InputError(f"{_NOT_HELD}: nothing is valid by the schema false")
        schema = {}
    # What a schema itself says to the library does not count: it could have keywords passed over.
    return {"json_schema": {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}}


def first_line(message: str) -> str:
    """An error of llguidance's without its own insides, which stand behind a mark or on later lines."""
    told = message.partition("<state>")[0]
    return " ".join(line.strip() for line in told.splitlines() if line.strip())[:300]


def try_apart(response_format: str) -> None:
    """Raises InputError if the library does not live to make a matcher of this JSON, or takes too long."""
    if len(response_format) <= _SHORT and not _divides(response_format):
        return
    command = [sys.executable, "-c", _COMMAND, json.dumps(sys.path)]
    if not _TRIALS.acquire(timeout=_SECONDS):
        raise NotNow("response_format cannot be tried now, others are being: ask again later, or make it smaller")
    try:
        done = subprocess.run(command, input=response_format.encode(), capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{_NOT_HELD}: it takes longer than {_SECONDS:g} s to prepare; make it smaller") from None
    finally:
        _TRIALS.release()
    if done.returncode:
        raise InputError(f"{_NOT_HELD}: it is too large or too deep; make it smaller")


def _divides(response_format: str) -> bool:
    """Whether it may ask for multiples of a large number, or of several that make one together."""
    if "%json" in response_format:  # of a grammar, which may spell that in other ways
        return True
    states = 1
    for number in _MULTIPLE.findall(response_format):
        _, digits, exponent = Decimal(number).normalize().as_tuple()
        states *= max(1, int("".join(map(str, digits)))) * 10 ** min(abs(int(exponent)), 9)
        if states > _STATES:
            return True
    return False


class _Bytes:
    """The smallest vocabulary."""

    bos_token_id, eos_token_id = None, 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def check_held(response_format: Mapping[str, Any], name: str) -> None:
    """Whether answers can be held to a form, found without a model: before one is loaded.

    Args:
        response_format: as `SamplingParams` has checked it.
        name: what its giver knows it by, for the message.

    Raises:
        InputError: if it is no schema, expression or grammar, or one that cannot be held to.
        ConfigError: if llguidance is not installed.
    """
    try:
        try_apart(json.dumps(response_format))
        matcher(_byte_tokens(), response_format)
    except InputError as error:
        why = str(error).replace(_NOT_HELD, "answers cannot be held to it")
        raise InputError(f"{name}: {why}: say it in another way, or leave it out") from None


def _byte_tokens() -> Any:
    """A vocabulary, as llguidance has it, for what does not depend on one."""
    made = library()
    return made.LLTokenizer(made.TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=[256])


def trial() -> None:
    """In the process of `try_apart`: make a matcher of what is on the standard input. Errors are the caller's to find.

    In a thread, which has as much stack as the caller's.
    """
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    response_format = json.loads(sys.stdin.buffer.read())

    def work() -> None:
        tokens = _byte_tokens()
        with suppress(InputError):
            matcher(tokens, response_format).compute_bitmask()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
