"""Answers held to a form: which tokens may come, and that what comes is valid, whatever else is asked for."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from vl.engine import Engine, SamplingParams, structured
from vl.engine.structured import Form, Forms, Masker

from .schemas import schema

pytest.importorskip("llguidance", reason="answers of a form need it: it is in the extra serve")

COUNT = int(os.environ.get("VL_SCHEMAS", "24"))
MESSAGES = [{"role": "user", "content": "Describe a red circle, as JSON."}]
REGEX = {"type": "regex", "pattern": "(é|🙂|[a-d]){3,9}"}


@pytest.fixture(scope="module")
def nano() -> vl.MiniMaxVL:
    return vl.load("nano", device="cpu", dtype="float32")


def held_to(found: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": found, "strict": True}}


def test_answers_are_valid_against_random_schemas(nano: vl.MiniMaxVL) -> None:
    """At temperature 1, from a model that knows no JSON. `VL_SCHEMAS=1000` for as many."""
    engine, inputs = nano.engine, nano.processor(MESSAGES)
    whole = 0
    for first in range(0, COUNT, 48):
        schemas = [schema(Random(seed)) for seed in range(first, min(first + 48, COUNT))]
        requests = [
            engine.prepare(
                inputs, SamplingParams(temperature=1.0, seed=i, max_new_tokens=150, response_format=held_to(each))
            )
            for i, each in enumerate(schemas)
        ]
        for each, answer in zip(schemas, engine.run(requests), strict=True):
            if answer.finish_reason == "stop":
                jsonschema.Draft202012Validator(each).validate(json.loads(answer.text))
                whole += 1
            else:
                assert len(answer.token_ids) == 150
    print(f"{whole} of {COUNT} came to their end, all valid")
    assert whole > 0.8 * COUNT


@given(texts=st.lists(st.text("ab1é日🙂", min_size=1, max_size=5), min_size=1, max_size=4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_tokens_that_may_come_are_those_that_some_text_goes_on_with(
    nano: vl.MiniMaxVL, texts: list[str], data: st.DataObject
) -> None:
    """Against all texts of the form and all tokens, byte by byte.

    What all texts that are left go on with the library may spell in the tokenizer's way alone.
    """
    spelt = nano.processor.tokenizer.spellings(nano.config.text.vocab_size)
    form = FORMS.setdefault("nano", Forms(nano)).form({"type": "regex", "pattern": "|".join(map(re.escape, texts))})
    logits, written, said = torch.zeros(1, len(spelt)), list[int](), b""
    while True:
        masks = Masker()([(form, written)], logits)
        assert not masks.errors
        found = {int(token) for token in masks.applied(logits)[0].isfinite().nonzero()}
        goes_on = {
            token
            for token, piece in enumerate(spelt)
            if piece and any(text.encode().startswith(said + piece) for text in texts)
        }
        goes_on |= nano.end_ids if said.decode(errors="replace") in texts else set()
        next_bytes = {text.encode()[len(said) :][:1] for text in texts if text.encode().startswith(said)}
        assert found == goes_on or (found and found < goes_on and len(next_bytes) == 1)
        written.append(data.draw(st.sampled_from(sorted(found))))
        if written[-1] in nano.end_ids:
            return
        said += spelt[written[-1]]


FORMS: dict[str, Forms] = {}


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (REGEX, "(é|🙂|[a-d]){3,9}"),
        ({"type": "grammar", "grammar": 'start: "yes" | "no, " WORD\nWORD: /[a-z]{2,5}/'}, "yes|no, [a-z]{2,5}"),
    ],
)
def test_expressions_and_grammars_hold(nano: vl.MiniMaxVL, form: dict[str, Any], pattern: str) -> None:
    found = nano.generate([MESSAGES], n=6, temperature=1.0, seed=1, max_new_tokens=40, response_format=form)
    assert all(answer.finish_reason == "stop" and re.fullmatch(pattern, answer.text) for answer in found)
    assert len({answer.text for answer in found}) > 1


def test_any_object_is_one_or_the_beginning_of_one(nano: vl.MiniMaxVL) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "response_format": {"type": "json_object"}}
    for answer in nano.generate([MESSAGES], n=6, seed=1, max_new_tokens=60, **options):
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)
        else:
            assert answer.text.startswith("{")
            assert len(answer.token_ids) == 60
    assert nano.generate([MESSAGES], max_new_tokens=1, **options)[0].finish_reason == "length"


def test_it_goes_with_other_options(nano: vl.MiniMaxVL) -> None:
    """Streaming, logprobs, penalties, filters, stop strings; greedy too, and beside requests that are free."""
    options: dict[str, Any] = {"response_format": REGEX, "max_new_tokens": 40, "frequency_penalty": 1.0, "seed": 4}
    plain = nano.generate([MESSAGES], max_new_tokens=8)[0]
    for more in ({}, {"temperature": 1.5, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.1, "logit_bias": {5: 100.0}}):
        found = nano.generate([MESSAGES], logprobs=True, top_logprobs=2, **options, **more)[0]
        assert re.fullmatch(REGEX["pattern"], found.text)
        assert "".join(nano.stream(MESSAGES, **options, **more)) == found.text
        assert found.logprobs is not None
        assert b"".join(bytes(each.bytes) for each in found.logprobs[:-1]).decode() == found.text
        stop = found.text[1:2]
        cut = nano.generate([MESSAGES], stop=stop, **options, **more)[0]
        assert (cut.text, cut.finish_reason) == (found.text[: found.text.index(stop)], "stop")
        params = [SamplingParams(**options, **more), SamplingParams(max_new_tokens=8)]
        inputs = nano.processor(MESSAGES)
        together = nano.engine.run([nano.engine.prepare(inputs, each) for each in params])
        assert [each.token_ids for each in together] == [found.token_ids, plain.token_ids]


def test_preempted_answers_go_on_in_their_form(tiny_checkpoint: Path) -> None:
    roomy, tight = (
        vl.load(tiny_checkpoint, device="cpu", dtype="float32", page_size=4, prefix_memory=0, cache_tokens=tokens)
        for tokens in (4000, 100)
    )
    preempted, preempt = [], tight.engine.scheduler.preempt  # type: ignore[attr-defined]
    tight.engine.scheduler.preempt = lambda entry: preempted.append(entry) or preempt(entry)  # type: ignore[attr-defined]
    form = {"type": "regex", "pattern": "[a-d]{12,20}"}
    options: dict[str, Any] = {"n": 4, "temperature": 1.0, "seed": 1, "max_new_tokens": 60, "response_format": form}
    found = tight.generate([MESSAGES], **options)
    assert preempted
    assert [answer.text for answer in found] == [answer.text for answer in roomy.generate([MESSAGES], **options)]
    assert all(re.fullmatch(form["pattern"], answer.text) for answer in found)


BAD: list[tuple[object, str]] = [
    ("json", "must be a mapping"),
    ({"type": "xml"}, "must be of a type among text, json_object, json_schema, regex, grammar"),
    ({}, "must be of a type"),
    ({"type": "regex"}, "must be with 'pattern'"),
    ({"type": "regex", "pattern": 5}, "must be with 'pattern'"),
    ({"type": "text", "schema": {}}, "must be without schema"),
    ({"type": "json_schema", "json_schema": {"name": "a"}}, 'must be with "json_schema": '),
    ({"type": "json_schema", "json_schema": {"schema": {}, "strickt": True}}, "must be without strickt"),
    ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}, "must have strict true or false"),
    ({"type": "json_object", "a": {1, 2}}, "must be plain JSON"),
    ({"type": "regex", "pattern": "a" * 2**20}, "must be at most 1,048,576 characters"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_what_is_no_response_format_is_refused(given: Any, message: str) -> None:
    with pytest.raises(vl.InputError, match="response_format .*" + re.escape(message)):
        SamplingParams(response_format=given)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (held_to({"type": "objekt"}), "Invalid type: objekt"),
        (held_to({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (held_to({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}), "uniqueItems"),
        (held_to(False), "the schema false"),
        (held_to({"type": "integer", "minimum": 5, "maximum": 2}), "minimum"),
        (held_to({"$ref": "#/nowhere"}), "nowhere"),
        ({"type": "regex", "pattern": "["}, "unclosed"),
        ({"type": "regex", "pattern": "(?=a)b"}, "look"),
        ({"type": "grammar", "grammar": "start: other"}, "unknown name"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_it_is_queued(
    nano: vl.MiniMaxVL, form: dict[str, Any], message: str
) -> None:
    inputs, params = nano.processor(MESSAGES), SamplingParams(response_format=form)
    for door in (lambda: nano.engine.submit(inputs, params), lambda: nano.engine.check(params)):
        with pytest.raises(vl.InputError, match=f"response_format cannot be held to: .*{message}"):
            door()
    assert isinstance(nano.engine, Engine)
    assert not nano.engine.scheduler.waiting


def test_what_a_schema_says_to_the_library_does_not_count(nano: vl.MiniMaxVL) -> None:
    said = {"x-guidance": {"whitespace_pattern": "x"}, "enum": [[1]]}
    for each in (said, True):
        form = Forms(nano).form(held_to(each))
        assert form.matcher.try_consume_tokens(nano.processor.tokenizer.encode_plain("[\n1]")) > 0
        assert form.matcher.is_accepting()


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}}
    return found


def chain(length: int) -> dict[str, Any]:
    """Each of the definitions names the next one, twice."""
    pair = {"type": "array", "minItems": 2, "items": False}
    names = {f"r{i}": pair | {"prefixItems": [{"$ref": f"#/$defs/r{i + 1}"}] * 2} for i in range(length)}
    return {"$defs": names | {f"r{length}": {"type": "null"}}, "$ref": "#/$defs/r0"}


def test_what_the_library_would_not_live_through_is_refused(
    nano: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried in a process of its own: there it may end the process, or go on for ever."""
    forms = Forms(nano)
    with pytest.raises(vl.InputError, match="response_format cannot be held to: recursion limit exceeded"):
        forms.form(held_to(nested(150)))
    with pytest.raises(vl.InputError, match="response_format cannot be held to: it is too large or too deep"):
        forms.form(held_to(chain(20_000)))
    assert forms.form(held_to(chain(60)))
    monkeypatch.setattr("vl.engine.grammars._SECONDS", 1e-3)
    with pytest.raises(vl.InputError, match=r"cannot be held to: it takes longer than 0\.001 s to prepare"):
        forms.form(held_to(chain(61)))
    assert forms.form(held_to(chain(60))), "it is ready"
    product = [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]
    grammar = f"start: %json {json.dumps(product[-1])}"
    large = {"type": "number", "multipleOf": 7436429.5}
    for short in (held_to({"allOf": product}), held_to(large), {"type": "grammar", "grammar": grammar}):
        with pytest.raises(vl.InputError, match=r"it takes longer than 0\.001 s"):
            forms.form(short)
    assert forms.form(held_to({"type": "number", "multipleOf": 0.01})), "it is not tried"
    monkeypatch.setattr(structured, "try_apart", None)  # what failed is not tried again
    for bad in (nested(150), chain(20_000), chain(61)):
        with pytest.raises(vl.InputError, match="response_format cannot be held to"):
            forms.form(held_to(bad))


def test_nobody_waits_for_the_form_of_another(nano: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    forms, begun, go_on = Forms(nano), threading.Event(), threading.Event()
    made = structured.matcher

    def slow(tokens: Any, response_format: Any, calls: Any) -> Any:
        if response_format["type"] == "regex":
            begun.set()
            assert go_on.wait(120)
        return made(tokens, response_format, calls)

    monkeypatch.setattr(structured, "matcher", slow)
    thread = threading.Thread(target=forms.form, args=(REGEX,))
    thread.start()
    assert begun.wait(120)
    assert forms.form({"type": "json_object"})
    go_on.set()
    thread.join()


@pytest.mark.parametrize("vocab", [64, 77])
@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 2), ()])
def test_bits_say_what_may_come(vocab: int, rows: tuple[int, ...]) -> None:
    """Of 32 tokens in a word, the first in its lowest bit; the other rows stay as they are."""
    words = torch.randint(-(2**31), 2**31, (len(rows), -(-vocab // 32)), dtype=torch.int32)
    logits = torch.randn(3, vocab)
    masks = structured.Masks(rows, words, {})
    before = logits.clone()
    found = masks.applied(logits)
    assert torch.equal(logits, before)
    assert torch.equal(masks.applied(before, own=True), found)
    for row, logit in enumerate(logits):
        for token in range(vocab):
            allowed = row not in rows or words[rows.index(row), token // 32].item() >> token % 32 & 1
            assert found[row, token] == (logit[token] if allowed else -torch.inf)


def test_masks_are_the_same_from_one_thread_and_from_several(
    nano: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, logits = nano.processor.tokenizer.encode_plain, torch.zeros(4, nano.config.text.vocab_size)
    made = FORMS.setdefault("nano", Forms(nano))

    def answers() -> list[tuple[Form | None, list[int]]]:
        form = made.form({"type": "regex", "pattern": "[a-z]+, [0-9]+"})
        return [(form, encode("ab")), (None, []), *((made.form({"type": "json_object"}), encode(s)) for s in ("", "{"))]

    alone = Masker()(answers(), logits)
    monkeypatch.setattr(structured, "_SMALL", 0)
    together = Masker()(answers(), logits)
    assert alone.rows == together.rows == [0, 2, 3]
    assert torch.equal(alone.bits, together.bits)
    assert len(alone.bits.unique(dim=0)) == 3


def test_text_of_any_form_is_no_form() -> None:
    assert SamplingParams(response_format={"type": "text"}) == SamplingParams()


def test_a_form_that_fails_on_the_way_ends_its_own_request(nano: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = nano.processor(MESSAGES)
    params = SamplingParams(response_format=REGEX, temperature=1.0, seed=1, max_new_tokens=40)
    expected = nano.engine.run([nano.engine.prepare(inputs, params)])[0]
    first, second = (nano.engine.submit(inputs, params) for _ in range(2))
    failing = property(lambda form: "too complex" if form is first.form and first.written == 2 else "")
    monkeypatch.setattr(Form, "error", failing)
    assert nano.engine.run([second])[0].token_ids == expected.token_ids
    assert first.written == 2
    with pytest.raises(vl.InputError, match="cannot be held to any further: too complex"):
        first.result()


def test_without_the_library_the_extra_is_named(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    model = vl.load(tiny_checkpoint, device="cpu")
    with pytest.raises(vl.ConfigError, match=r"need llguidance .*pip install 'minimax-vl\[serve\]'"):
        model.chat(MESSAGES, response_format=REGEX)


def test_a_form_without_end_is_refused_without_the_librarys_insides(nano: vl.MiniMaxVL) -> None:
    with pytest.raises(vl.InputError, match="response_format") as found:
        nano.chat(MESSAGES, response_format=held_to({"$ref": "#"}), max_new_tokens=8)
    assert "<state>" not in str(found.value)
