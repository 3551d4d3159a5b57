"""Functions that may be called: described to the model, called in a conversation, and read out of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import ChatTemplate, Conversation, InputError, Processor, Tokenizer, ToolCall
from preprocessing.tools import parse_tool_calls, write_tool_calls

SHARED = Path(__file__).parents[3] / "shared" / "data" / "release" / "tokenizer_config.json"

TOOLS = [{"type": "function", "function": {"name": "get_time", "description": "Où? <b>&'", "parameters": {"z": 1}}}]
CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"city":  "Paris"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "get_date", "arguments": {"day": 1, "où": [None]}}},
]
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": '{"date": "today"}'}]},
    {"role": "function", "name": "get_time", "content": "noon"},
]
PROMPT = (
    "<beginning_of_sentence>user name=user\nWhat time is it?<end_of_sentence>\n"
    "<beginning_of_sentence>ai name=assistant\n<function_call>```typescript\n"
    'functions.get_time({"city":  "Paris"})\nfunctions.get_date({"day": 1, "où": [null]})\n```<end_of_sentence>\n'
    '<beginning_of_sentence>system function_response=functions\n{"name": "get_date", "response": {"date": "today"}}'
    "<end_of_sentence>\n"
    '<beginning_of_sentence>system function_response=functions\n{"name": "get_time", "response": noon}'
    "<end_of_sentence>\n"
    '<beginning_of_sentence>system function_setting=functions\n{"type": "function", "function": {"name": "get_time", '
    '"description": "Où? <b>&\'", "parameters": {"z": 1}}}<end_of_sentence>\n'
    "<beginning_of_sentence>ai name=assistant\n"
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=4)
names = st.from_regex(r"[A-Za-z_][\w.-]{0,12}", fullmatch=True)
calls = st.lists(
    st.builds(
        lambda name, arguments, text: {
            "function": {"name": name, "arguments": json.dumps(arguments) if text else arguments}
        },
        names,
        objects,
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": texts | st.none(), "tool_calls": calls}),
    st.fixed_dictionaries({"role": st.sampled_from(["function", "tool"]), "name": names, "content": texts}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.just([{"type": "image", "image": "a.png"}])}),
)


@pytest.fixture(scope="session")
def released() -> ChatTemplate:
    if not SHARED.is_file():
        pytest.skip("the released chat template lies beside this repository only where it is developed")
    return ChatTemplate(json.loads(SHARED.read_text(encoding="utf-8"))["chat_template"])


def test_the_released_format() -> None:
    assert ChatTemplate().render(TALK, tools=TOOLS) == PROMPT


def test_the_released_template(released: ChatTemplate) -> None:
    assert released.render(TALK, tools=TOOLS) == PROMPT


@given(st.lists(messages, min_size=1, max_size=5), st.lists(objects, max_size=3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_default_is_the_released_template(
    released: ChatTemplate, talk: list[dict[str, Any]], tools: list[dict[str, Any]], prompt: bool
) -> None:
    assert ChatTemplate().render(talk, prompt, tools) == released.render(talk, prompt, tools)


def test_older_calls() -> None:
    """OpenAI's `function_call` is a call without an id."""
    old = {
        "role": "assistant",
        "content": "So: ",
        "function_call": {"name": "f", "arguments": "{}"},
        "tool_calls": None,
    }
    (message,) = Conversation.of([old]).messages
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert "assistant\nSo: <function_call>```typescript\nfunctions.f({})\n```<end" in ChatTemplate().render([old])


def test_a_template_that_knows_calls_is_given_them() -> None:
    """As templates of other models expect them: arguments are objects, and the role is the one that they name."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'tool' %}[{{ m.name }}: {{ m.content[0].text }}]"
        "{% elif m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    expected = '{"city": "Paris"}{"day": 1, "où": [null]}[get_date: {"date": "today"}][get_time: noon]'
    assert template.render(TALK) == expected


@pytest.mark.parametrize(
    ("talk", "tools", "cause"),
    [
        (TALK[:1], TOOLS, "takes no tools"),
        (TALK[:1] + TALK[3:], None, "leaves out what functions gave back"),
    ],
)
def test_nothing_is_left_out_in_silence(talk: Any, tools: Any, cause: str) -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0].text }}{% endif %}{% endfor %}"
    with pytest.raises(InputError, match=cause):
        ChatTemplate(source).render(talk, tools=tools)


def call(**function: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": None, "tool_calls": [CALLS[0], {"function": function}]}]


@pytest.mark.parametrize(
    ("talk", "cause"),
    [
        ([{"role": "tool", "tool_call_id": "x", "content": "1"}], "message 1: .*name.*with id 'x'"),
        ([{"role": "function", "content": "1"}], "message 1: the function message needs the function's name"),
        ([{"role": "function", "name": 3, "content": "1"}], "message 1: name must be a string, got 3"),
        ([{"role": "tool", "tool_call_id": 3, "content": "1"}], "message 1: tool_call_id must be a string"),
        ([{"role": "function", "name": "f", "content": {"a": 1}}], "message 1: content must be"),
        (
            [{"role": "function", "name": "f", "content": [{"type": "image", "image": "a"}]}],
            "message 1: what a function gives back must be text",
        ),
        ([{"role": "user", "content": "a", "tool_calls": CALLS}], "message 1: only an assistant's"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "message 1: content must be"),
        ([{"role": "assistant", "content": None, "tool_calls": {"a": 1}}], "message 1: tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": CALLS, "function_call": {"name": "f"}}], "message 1: has both"),
        (call(), "message 1, tool call 2: expected"),
        (call(name=""), "message 1, tool call 2: expected"),
        (call(name="f", arguments=3), "message 1, tool call 2: arguments must be an object or JSON text, got 3"),
        (call(name="f", arguments={"a": b""}), "message 1, tool call 2, arguments is not JSON"),
        ([{"role": "assistant", "tool_calls": [CALLS[0] | {"id": 7}]}], "message 1, tool call 1: id must be a string"),
    ],
)
def test_malformed_calls_are_located(talk: Any, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        Conversation.of(talk)


@pytest.mark.parametrize(
    ("tools", "cause"),
    [
        ("get_time", "tools must be a list"),
        ({"name": "f"}, "tools must be a list"),
        (print, "tools must be a list"),
        ([TOOLS[0], print], "tool 2 must be a JSON object"),
        ([{"name": {1, 2}}], "tool 1 is not JSON"),
        ([{"name": float("nan")}], "tool 1 is not JSON"),
    ],
)
def test_malformed_tools_are_located(tools: Any, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        Conversation.of(TALK, tools)


def test_lone_surrogates_become_replacement_characters() -> None:
    cut = "a\ud800"
    talk = [
        {"role": "assistant", "tool_calls": [{"id": cut, "function": {"name": cut, "arguments": {cut: [cut]}}}]},
        {"role": "tool", "tool_call_id": cut, "content": cut},
    ]
    conversation = Conversation.of(talk, [{cut: cut}])
    assert "\ud800" not in str(conversation)
    assert "a\ufffd" in ChatTemplate().render(conversation)
    ChatTemplate().render(conversation).encode()


FENCED = "<function_call>```typescript\n%s\n```<end_of_sentence>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("functions.f({})", []),  # nothing without the token
        ("I look: " + FENCED % 'functions.f({"a": 1})', [ToolCall("f", {"a": 1})]),
        (FENCED % "functions.f()", [ToolCall("f", {})]),
        (
            FENCED % 'functions.f( {"a": "}) ) {\\" ```"} );\nfunctions.g({})',
            [ToolCall("f", {"a": '}) ) {" ```'}), ToolCall("g", {})],
        ),
        (FENCED % 'functions.f({\n  "a": {\n    "b": ["x\ny"]\n  }\n})', [ToolCall("f", {"a": {"b": ["x\ny"]}})]),
        (FENCED % 'functions.f({"a": "<function_call>"})', [ToolCall("f", {"a": "<function_call>"})]),
        ('<function_call>functions.f({"a": 1})', [ToolCall("f", {"a": 1})]),
        (FENCED % 'functions.f({"a": 1})' + FENCED % "functions.g({})", [ToolCall("f", {"a": 1}), ToolCall("g", {})]),
        # what is not a JSON object stays text, and the calls after it are read
        (FENCED % "functions.f({'a': (1)})\nfunctions.g({})", [ToolCall("f", "{'a': (1)}"), ToolCall("g", {})]),
        (FENCED % "functions.f([1, 2])", [ToolCall("f", "[1, 2]")]),
        (FENCED % 'functions.f({"a": 1}, 2)', [ToolCall("f", '{"a": 1}, 2')]),
        (FENCED % 'functions.f({"a": 1}', [ToolCall("f", '{"a": 1}')]),
        ('<function_call>```typescript\nfunctions.f({"a": "Par', [ToolCall("f", '{"a": "Par')]),
        (FENCED % ('functions.f({"a": %s})' % ("1" * 5000)), [ToolCall("f", '{"a": %s}' % ("1" * 5000))]),
        (FENCED % 'functions.f({"a": NaN})', [ToolCall("f", '{"a": NaN}')]),
        (FENCED % 'functions.f({"a": -1e999})', [ToolCall("f", '{"a": -1e999}')]),
        (FENCED % ("functions.f(%s)" % ("[" * 100_000)), [ToolCall("f", "[" * 100_000)]),
        ("<function_call>", []),
        ("<function_call>I cannot.", []),
    ],
)  # fmt: skip
def test_calls_in_an_answer(text: str, expected: list[ToolCall]) -> None:
    assert parse_tool_calls(text) == expected


@given(calls)
@settings(max_examples=100, deadline=None)
def test_calls_are_read_as_they_were_written(written: list[dict[str, Any]]) -> None:
    read = parse_tool_calls("Well. " + write_tool_calls(written) + "<end_of_sentence>")
    functions = [call["function"] for call in written]
    given = [f["arguments"] if isinstance(f["arguments"], dict) else json.loads(f["arguments"]) for f in functions]
    assert read == [ToolCall(f["name"], arguments) for f, arguments in zip(functions, given, strict=True)]


@given(st.text(alphabet='functions.({})"`a1\n\\<>_cl', max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_answer_is_read(text: str) -> None:
    for call in parse_tool_calls("<function_call>" + text):
        assert call.name in text
        assert isinstance(call.arguments, dict) or call.arguments in text


def test_calls_begin_at_the_special_token(backend_json: str) -> None:
    backend = tokenizers.Tokenizer.from_str(backend_json)
    processor = Processor(Tokenizer(backend), ChatTemplate(), None)
    spelled = processor.tokenizer.encode(FENCED % 'functions.f({"a": "déjà"})')
    assert processor.tool_calls(spelled) == []  # this vocabulary has no such token
    backend.add_special_tokens(["<function_call>"])
    ids = processor.tokenizer.encode("Let me see. " + FENCED % 'functions.f({"a": "déjà"})')
    assert processor.tool_calls(ids) == [ToolCall("f", {"a": "déjà"})]
    assert processor.tool_calls(spelled) == []


def test_tools_reach_the_prompt(tokenizer: Tokenizer) -> None:
    inputs = Processor(tokenizer, ChatTemplate(), None)(TALK, tools=TOOLS)
    assert tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False) == PROMPT
