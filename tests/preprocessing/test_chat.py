"""Messages checked; templates rendered as transformers renders them; what the assistant is to learn."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import DEFAULT_TEMPLATE, ChatTemplate, Conversation, InputError

# The template that the released MiniMax-VL-01 ships as chat_template.json, put together from its three equal branches.
_BRANCH = (
    "{%% if message['role'] == '%s' %%}{{ '<beginning_of_sentence>%s\\n' }}{%% for item in message['content'] %%}"
    "{%% if item.type == 'image' %%}<image>{%% elif item.type == 'text' %%}{{ item.text }}{%% endif %%}{%% endfor %%}"
    "{{ '<end_of_sentence>\\n' }}{%% endif %%}"
)
RELEASED = (
    "{% for message in messages %}"
    + _BRANCH % ("system", "system ai_setting=assistant")
    + _BRANCH % ("assistant", "ai name=assistant")
    + _BRANCH % ("user", "user name=user")
    + "{% endfor %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
)
# In the manner of MiniMax-Text-01's: the first part only, and the generation tag.
TEXT_ONLY = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] }}{% endgeneration %}{% endfor %}{{ '<end_of_sentence>\\n' }}"
    "{% else %}"
    "{{ '<beginning_of_sentence>user name=user\\n' + message['content'][0]['text'] + '<end_of_sentence>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}{% endif %}"
)

IMAGE = {"type": "image", "image": "a.png"}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "What\n is this? "}]},
    {"role": "assistant", "content": "A <b>cat</b> & 'dog'."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "this?"}, IMAGE, IMAGE]},
]

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
parts = st.lists(st.one_of(st.just(IMAGE), st.builds(lambda t: {"type": "text", "text": t}, texts)), max_size=4)
talks = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": st.one_of(texts, parts)}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": texts}),
    ),
    min_size=1,
    max_size=5,
)


def transformers_render(source: str, messages: Any, **options: Any) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utils.render_jinja_template([messages], chat_template=source, **options)
    return rendered[0]


def test_the_released_format() -> None:
    assert ChatTemplate().render(TALK) == (
        "<beginning_of_sentence>system ai_setting=assistant\nBe brief.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\n<image>What\n is this? <end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\nA <b>cat</b> & 'dog'.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\nAnd this?<image><image><end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\n"
    )


@given(talks, st.booleans())
@settings(max_examples=40, deadline=None)
def test_default_is_the_released_template(talk: list[dict[str, Any]], prompt: bool) -> None:
    default, released = ChatTemplate(), ChatTemplate(RELEASED)
    assert default.render(talk, prompt) == released.render(talk, prompt)


@pytest.mark.parametrize("source", [DEFAULT_TEMPLATE, RELEASED])
@given(talk=talks)
@settings(max_examples=40, deadline=None)
def test_renders_as_transformers(source: str, talk: list[dict[str, Any]]) -> None:
    plain = Conversation.of(talk).messages
    assert ChatTemplate(source).render(talk) == transformers_render(source, plain, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        TEXT_ONLY,
        "{% for m in messages %}\n  {% if loop.first %}\n{{ m | tojson }}\n  {% endif %}\n"
        "{% continue %}\n{% endfor %}\n",
        "{{ bos_token }}{{ messages | tojson(indent=2) }}{{ tools is none }}{{ strftime_now('%Y') | length }}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ x.y if x is defined else 'no' }}",
    ],
)
def test_renders_other_templates_as_transformers(source: str) -> None:
    talk = [{"role": "user", "content": "Où & <where>?"}, {"role": "assistant", "content": "There."}]
    plain = Conversation.of(talk).messages
    expected = transformers_render(source, plain, add_generation_prompt=True, bos_token="<s>")
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(talk) == expected


def test_image_parts() -> None:
    talk = [
        {
            "role": "user",
            "content": [
                IMAGE,
                {"type": "image_url", "image_url": {"url": "http://b"}},
                {"type": "image_url", "image_url": b"c"},
                {"type": "image", "url": "d"},
                {"type": "image", "path": Path("e")},
            ],
        }
    ]
    conversation = Conversation.of(talk)
    assert conversation.images == ["a.png", "http://b", b"c", "d", Path("e")]
    assert conversation.messages[0]["content"] == [{"type": "image"}] * 5
    assert Conversation.of(conversation) is conversation


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, {"role": "user", "content": list(content)}]


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        ("Hello", "messages must be a non-empty list.*got str"),
        ([], "non-empty list.*an empty list"),
        ({"role": "user", "content": "Hi"}, "got dict"),
        (None, "got NoneType"),
        (["Hi"], "message 1: expected .*got 'Hi'"),
        ([{"role": "user"}], "message 1: expected"),
        (
            [{"role": "robot", "content": "Hi"}],
            "message 1: role must be one of system, user, assistant, function, tool, got",
        ),
        ([{"role": ["user"], "content": "Hi"}], "message 1: role"),
        ([{"role": "user", "content": None}], "message 1: content must be"),
        ([{"role": "user", "content": {"type": "text"}}], "message 1: content must be"),
        (user("Hi"), "message 2, part 1: expected"),
        (user(IMAGE, {"type": "text"}), 'message 2, part 2: a text part needs "text"'),
        (user({"type": "text", "text": 3}), "message 2, part 1: a text part"),
        (user({"type": "image"}), "message 2, part 1: the image part has no image"),
        (user({"type": "image_url", "image_url": {}}), "message 2, part 1: the image_url part has no image"),
        (user({"type": "image_url"}), "has no image"),
        (user({"type": "video", "video": "a"}), "message 2, part 1: expected .*got type 'video'"),
        (user({}), "got type None"),
        ([{"role": "user", "content": "Hi", "images": ["a.png"]}], "message 1: images stands where nothing is read"),
        ([{"role": "user", "content": "Hi", "image": np.zeros((2, 2, 3))}], "message 1: image stands"),
        ([{"role": "user", "content": "Hi", "audio": {"id": "a"}}], "message 1: audio stands"),
        (user({"type": "text", "text": "Hi", "image_url": {"url": "a"}}), "message 2, part 1: image_url stands"),
        (user({"type": "text", "text": b"Hi"}), "message 2, part 1: a text part"),
        ([{"role": "user", "content": 5}], "message 1: content must be .*got 5"),
        ([{"role": "user", "content": b"Hi"}], "message 1: content must be .*got b'Hi'"),
        ([{"role": "user", "content": iter("Hi")}], "message 1: content must be"),
        ([{"content": "Hi"}], "message 1: expected"),
        ([{"role": "user", "content": "Hi", "name": 5}], "message 1: name must be a string, got 5"),
        ([{"role": "user", "content": "Hi"}, 7], "message 2: expected .*got 7"),
        (7, "got int"),
        (iter(TALK), "got list_iterator"),
    ],
)
def test_malformed_messages_are_located(messages: Any, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        ChatTemplate().render(messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud800", "\ufffd"),
        ("a\udcffb\udc00", "a\ufffdb\ufffd"),
        ("\ud83d\ude42", "\U0001f642"),
        ("\ude42\ud83d", "\ufffd\ufffd"),
    ],
)
def test_lone_surrogates_become_replacement_characters(text: str, expected: str) -> None:
    """As `bytes.decode("utf-16", "replace")` has it: the halves of a pair are one character."""
    halves = [{"type": "text", "text": half} for half in text]
    for content in (text, halves):
        talk = [{"role": "user", "content": content, "name": text}]
        (message,) = Conversation.of(talk).messages
        assert message == {"role": "user", "content": [{"type": "text", "text": expected}], "name": expected}


def test_empty_fields_are_passed_over() -> None:
    """As messages come back from OpenAI's client, and as data sets fill rows up."""
    empty = {"refusal": None, "annotations": [], "audio": None, "images": [], "tool_calls": None, "name": None}
    part = {"type": "text", "text": "Hi", "image": None}
    (message,) = Conversation.of([{"role": "assistant", "content": [part], "function_call": None, **empty}]).messages
    assert message == {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}


def test_long_texts_in_many_parts() -> None:
    """A million characters in parts are joined in linear time."""
    content = [{"type": "text", "text": "word "}] * 200_000
    (message,) = Conversation.of([{"role": "user", "content": content}]).messages
    assert message["content"] == [{"type": "text", "text": "word " * 200_000}]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ nothing.here }}", "UndefinedError.*nothing"),
        ("{{ 'a' + messages[0]['content'] }}", "TypeError"),
    ],
)
def test_failing_templates(source: str, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        ChatTemplate(source).render(TALK)


def test_broken_template() -> None:
    with pytest.raises(InputError, match="line 2"):
        ChatTemplate("a\n{% for %}")


def test_templates_are_copied() -> None:
    for source in (DEFAULT_TEMPLATE, "{{ bos_token }}{{ messages | tojson }}"):
        template = ChatTemplate(source, {"bos_token": "<s>"})
        for copied in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
            assert copied.render(TALK) == template.render(TALK)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    def write(name: str, content: Any) -> None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    assert ChatTemplate.load(tmp_path).source == DEFAULT_TEMPLATE
    write("processor_config.json", {"chat_template": "nested"})
    assert ChatTemplate.load(tmp_path).render(TALK) == "nested"
    write("processor_config.json", {})
    write("tokenizer_config.json", {"bos_token": {"content": "<s>"}, "pad_token": None})
    assert ChatTemplate.load(tmp_path).source == DEFAULT_TEMPLATE
    assert ChatTemplate.load(tmp_path).special_tokens == {"bos_token": "<s>"}
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}yes"}]
    write("tokenizer_config.json", {"bos_token": "<s>", "chat_template": named})
    assert ChatTemplate.load(tmp_path).render(TALK) == "<s>yes"
    write("chat_template.json", {"chat_template": RELEASED})
    assert ChatTemplate.load(tmp_path).source == RELEASED
    write("chat_template.jinja", "\ufeffjinja")
    assert ChatTemplate.load(tmp_path).render(TALK) == "jinja"


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": [1]}', '{"chat_template": {"rag": "x"}}', "\udcff"])
def test_damaged_template_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("source", [None, RELEASED])
@given(talk=talks)
@settings(max_examples=40, deadline=None)
def test_segments(source: str | None, talk: list[dict[str, Any]]) -> None:
    template = ChatTemplate(source)
    answers = [message["content"] for message in talk if message["role"] == "assistant"]
    if not answers:
        with pytest.raises(InputError, match="no assistant message"):
            template.segments(talk)
        return
    segments = template.segments(talk)
    assert "".join(text for text, _ in segments) == template.render(talk, add_generation_prompt=False)
    assert [text for text, learn in segments if learn] == [answer + "<end_of_sentence>" for answer in answers]
    first = next(i for i, message in enumerate(talk) if message["role"] == "assistant")
    if first:
        assert segments[0][0] == template.render(talk[:first])


def test_segments_of_text_01() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    learnt = [text for text, learn in ChatTemplate(TEXT_ONLY).segments(talk) if learn]
    assert learnt == ["Yes<end_of_sentence>"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content[0].text | trim }}<end_of_sentence>{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content[0].text }}<end_of_sentence>{% endfor %}",
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
    ],
)
def test_segments_that_cannot_be_told(source: str) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yes "}]
    with pytest.raises(InputError, match=r"message 2: .*default template"):
        ChatTemplate(source + "{# add_generation_prompt #}").segments(talk)
    with pytest.raises(InputError, match=r"message 1: .*text only"):
        ChatTemplate().segments([{"role": "assistant", "content": [IMAGE]}])


def _looped(before: str = "", over: str = "messages", after: str = "") -> str:
    """A template of a loop over messages, with something before or after what it writes of each."""
    turn = "{{ '<beginning_of_sentence>' + m['role'] + '\n' + m['content'][0]['text'] }}"
    begin = "{% if add_generation_prompt %}{{ '<beginning_of_sentence>assistant\n' }}{% endif %}"
    return f"{{% for m in {over} %}}{before}{turn}{after}{{{{ '<end_of_sentence>\n' }}}}{{% endfor %}}{begin}"


@pytest.mark.parametrize(
    ("source", "apart"),
    [
        (DEFAULT_TEMPLATE, True),
        ("{{ 'head ' }}" + _looped(), True),
        ("{% set n = 2 %}" + _looped("{% set n = n + 1 %}{{ n }}"), True),
        (_looped() + "{% if not add_generation_prompt %} {% endif %}", True),
        (_looped("{{ loop.index }}"), False),
        ("{% set n = namespace(i=0) %}" + _looped("{% set n.i = n.i + 1 %}{{ n.i }}"), False),
        ("{{ messages|length }}" + _looped(), False),
        (_looped(over="messages|reverse"), False),
        (_looped("{% if m['content'][0]['text'] == 'c' %}{% break %}{% endif %}"), False),
        (_looped(over="messages if m['role']"), False),
        (_looped(after="!"), True),
    ],
)
def test_prompts_in_segments_are_those_of_generation(source: str, apart: bool) -> None:
    """However they are found: messages that are written apart in one rendering of all."""
    template = ChatTemplate(source)
    assert template._apart is apart
    said = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    whole = template.render(said, False)
    asked = [template.render(said[:i], True) for i in (1, 3, 5)]
    if not all(whole.startswith(f"{prompt}{answer}<end") for prompt, answer in zip(asked, "bdf", strict=True)):
        with pytest.raises(InputError, match="cannot be found in it"):
            template.segments(said)
        return
    segments = template.segments(said)
    texts = [text for text, _ in segments]
    assert ["".join(texts[:i]) for i in (1, 3, 5)] == asked
    assert "".join(texts) == whole
    assert [text for text, learnt in segments if learnt] == [f"{answer}<end_of_sentence>" for answer in "bdf"]
