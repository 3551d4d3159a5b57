"""Messages to prompt text, by the checkpoint's own chat template or by the released format written out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from preprocessing.chat import RESULT_ROLES, Conversation, Messages, Tools
from preprocessing.errors import InputError
from preprocessing.sandbox import Budget, Sandbox, TemplateLimit, render_bounded
from preprocessing.tools import parse_arguments, write_tool_calls
from preprocessing.unicode import well_formed

END_OF_TURN = "<end_of_sentence>"
"""The token that ends every message, and at which generation stops."""

DEFAULT_TEMPLATE = """\
{%- set headers = {'system': 'system ai_setting=assistant', 'user': 'user name=user',
                   'assistant': 'ai name=assistant'} -%}
{%- for message in messages -%}
    {%- if message['role'] == 'function' -%}
        {{- '<beginning_of_sentence>system function_response=functions\\n{"name": "' + message['name'] -}}
        {{- '", "response": ' + message['content'][0]['text'] + '}<end_of_sentence>\\n' -}}
    {%- else -%}
        {{- '<beginning_of_sentence>' + headers[message['role']] + '\\n' -}}
        {%- if message['content'] is string -%}
            {{- message['content'] -}}
        {%- else -%}
            {%- for part in message['content'] -%}
                {%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '<end_of_sentence>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- for tool in tools or [] -%}
    {{- '<beginning_of_sentence>system function_setting=functions\\n' + tool | tojson + '<end_of_sentence>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<beginning_of_sentence>ai name=assistant\\n' -}}{%- endif -%}
"""
"""The released MiniMax-VL-01 format; what a function gave back stands in its turn as it is, without quotes."""


class ChatTemplate:
    """A Jinja chat template, run in a sandbox with the names that transformers gives to templates.

    Args:
        source: Jinja text; None is the released format, `DEFAULT_TEMPLATE`.
        special_tokens: what templates may refer to, such as `bos_token` and `eos_token`.
        name: what errors call it; the file that it comes from.

    Raises:
        InputError: if the template cannot be compiled.
    """

    def __init__(
        self,
        source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        name: str = "the chat template",
    ) -> None:
        self.source = DEFAULT_TEMPLATE if source is None else well_formed(source)
        self.special_tokens = dict(special_tokens or {})
        self.name = name
        environment = _build_environment()
        try:
            with Budget(self.source).spent_here():
                self._template = environment.from_string(self.source)
            tree = environment.parse(self.source)
            self._words, self._apart = _find_words(tree), _writes_apart(tree)
        except TemplateSyntaxError as error:
            raise InputError(f"{name}, line {error.lineno}: {error.message}; fix the template") from None
        except Exception as error:  # nested too deeply for Python
            raise InputError(f"{name} cannot be compiled ({type(error).__name__}: {error}); simplify it") from None

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, dict[str, str], str]]:
        """To pickle and copy it: compiled anew from its source."""
        return type(self), (self.source, self.special_tokens, self.name)

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate:
        """The template of a checkpoint folder, or the default one.

        It is looked for as transformers does: `chat_template.jinja`, then `chat_template.json`, then the
        `chat_template` of `tokenizer_config.json` and of `processor_config.json`. Raises InputError if one of these
        cannot be read.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        tokens = {
            key: _read_token(value) for key, value in config.items() if key.endswith("_token") and _read_token(value)
        }
        if (jinja := folder / "chat_template.jinja").is_file():
            try:
                return cls(jinja.read_text(encoding="utf-8-sig"), tokens, str(jinja))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{jinja}: cannot be read ({error})") from None
        for name, content in (
            ("chat_template.json", read_json(folder / "chat_template.json")),
            ("tokenizer_config.json", config),
            ("processor_config.json", read_json(folder / "processor_config.json")),
        ):
            if (template := content.get("chat_template")) is not None:
                return cls(_pick_default(template, folder / name), tokens, f"the chat template of {folder / name}")
        return cls(None, tokens)

    def render(
        self,
        messages: Messages | Conversation,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        preserve_thinking: bool = False,
    ) -> str:
        """The prompt text. With `add_generation_prompt`, it ends where the assistant's next words begin.

        What the assistant thought before its words is left to the template, which may write it where
        `preserve_thinking` says that it is to be there.

        A template that does not know `tool_calls` is given an assistant's calls as text, in the released model's form;
        one that knows only one of the roles function and tool is given that one.

        Raises:
            InputError: for malformed messages or tools, or if the template refuses them, fails on them, or leaves out
                the tools or what a function gave back.
        """
        conversation = Conversation.of(messages, tools)
        text = self._render(conversation.messages, add_generation_prompt, conversation.tools, preserve_thinking)
        self._check_nothing_left_out(conversation, text, add_generation_prompt, preserve_thinking)
        if not add_generation_prompt and "add_generation_prompt" not in self.source:
            # This template appends the generation prompt whatever is asked; of no messages, it is all there is.
            with suppress(InputError):
                text = text.removesuffix(self._render([], True, []))
        return text

    def segments(self, messages: Messages | Conversation) -> list[tuple[str, bool]]:
        """The rendered conversation, cut into (text, whether the assistant is to learn to write it).

        The assistant's text of each of its messages is marked, with what it thought before and the end-of-turn token
        after it. What comes before is the prompt that generation would see, but for what was thought in earlier turns.

        Raises:
            InputError: if no message is the assistant's, or if this template does not write a conversation as its
                prefix, the assistant's text unchanged, and the end-of-turn token.
        """
        conversation = Conversation.of(messages)
        end = self.special_tokens.get("eos_token", END_OF_TURN)
        whole, prompt_before = self._prompts(conversation)
        segments: list[tuple[str, bool]] = []
        done = 0
        for i, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            if any(part["type"] != "text" for part in message["content"]):
                raise InputError(f"message {i + 1}: an assistant message to learn from must be text only")
            answer = self._adapt(message)["content"][0]["text"] + end
            prompt = prompt_before(i)
            thought = message.get("reasoning_content", "")
            before, found, _ = whole[len(prompt) :].partition(answer)
            if thought not in before or (thought and not found):
                raise InputError(
                    f"message {i + 1}: this checkpoint's chat template leaves out reasoning_content: take it out of "
                    "the data, or use a template that writes it"
                )
            if thought:
                answer = before + answer
            if not whole.startswith(prompt + answer) or len(prompt) < done:
                raise InputError(
                    f"message {i + 1}: this chat template does not write it as the generation prompt, the text and "
                    f"{end}, so the text to learn cannot be found in it; use the default template"
                    + (", without tools" if conversation.tools else "")
                )
            segments += [(prompt[done:], False), (answer, True)]
            done = len(prompt) + len(answer)
        if not segments:
            raise InputError("no assistant message to learn from; add one after the user's")
        return [*segments, (whole[done:], False)]

    def _prompts(self, conversation: Conversation) -> tuple[str, Callable[[int], str]]:
        """The conversation as it is learnt from, and a function that gives the prompt before message i of it."""
        messages, tools = conversation.messages, conversation.tools
        adapted = tools or any(message["role"] in RESULT_ROLES or "tool_calls" in message for message in messages)
        if self._apart and not adapted:
            # One rendering instead of one for every turn, each with all turns before it.
            watched = _Watched(messages)
            text = self._render(watched, True, [], preserve_thinking=True)
            starts = watched.starts()
            if self._render([], False, [], preserve_thinking=True) == text[: starts[0]]:
                return text[: starts[-1]], lambda i: text[: starts[i]] + text[starts[-1] :]
        whole = self.render(conversation, add_generation_prompt=False, preserve_thinking=True)
        return whole, lambda i: self._render(messages[:i], True, tools, preserve_thinking=True)

    def begun(self, conversation: Conversation) -> list[str]:
        """The prompt before the last message, which is the assistant's, and that message's text: it is to go on there.

        Raises:
            InputError: as of `render`, or if that message has more than text.
        """
        *before, last = conversation.messages
        if any(part["type"] != "text" for part in last["content"]):
            raise InputError(f"message {len(before) + 1}: an assistant's message to go on from must be text only")
        prompt = self.render(replace(conversation, messages=before))
        return [prompt, "".join(part["text"] for part in last["content"])]

    def _render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]],
        preserve_thinking: bool = False,
    ) -> str:
        pieces = messages.pieces if isinstance(messages, _Watched) else None
        names = {
            "messages": [self._adapt(message) for message in messages] if pieces is None else messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "preserve_thinking": preserve_thinking,
        }
        # A template is a checkpoint's code: whatever it raises is a fault of the checkpoint or of the messages.
        try:
            return render_bounded(self._template, {**self.special_tokens, **names}, pieces)
        except TemplateLimit as limit:
            raise InputError(f"{self.name} {limit}: mend it, or use the default template") from None
        except Exception as error:
            raise InputError(
                f"{self.name} fails on these messages ({type(error).__name__}: {error}); "
                "check their roles and parts, or the checkpoint's template"
            ) from None

    def _adapt(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message in the words that this template knows."""
        if message["role"] in RESULT_ROLES and message["role"] not in self._words:
            return {**message, "role": next((role for role in RESULT_ROLES if role in self._words), message["role"])}
        calls = message.get("tool_calls")
        if not calls:
            return message
        if "tool_calls" in self._words:
            return {**message, "tool_calls": parse_arguments(calls)}
        *content, last = message["content"]
        written = write_tool_calls(calls)
        if last["type"] == "text":
            return {**message, "content": [*content, {"type": "text", "text": last["text"] + written}]}
        return {**message, "content": [*content, last, {"type": "text", "text": written}]}

    def _check_nothing_left_out(self, conversation: Conversation, text: str, *settings: bool) -> None:
        """What a template does not know it may pass over in silence: found by rendering without it."""
        messages, (prompt, thinking) = conversation.messages, settings
        if conversation.tools and text == self._render(messages, prompt, [], thinking):
            raise InputError("this checkpoint's chat template takes no tools; leave them out, or use the default one")
        others = [message for message in messages if message["role"] not in RESULT_ROLES]
        if 0 < len(others) < len(messages) and text == self._render(others, prompt, conversation.tools, thinking):
            raise InputError(
                "this checkpoint's chat template leaves out what functions gave back (messages of the role function "
                "or tool); give it in a user's message, or use the default template"
            )


class _Watched(list[dict[str, Any]]):
    """Messages, all of them known to the template, that note how much was written when a loop came to each.

    `pieces` is where the text has to go as it is written.
    """

    def __init__(self, messages: Iterable[dict[str, Any]]) -> None:
        super().__init__(messages)
        self.pieces: list[str] = []
        self._reached: list[int] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._reached = []  # of the last loop: the sandbox goes through them first
        for message in super().__iter__():
            self._reached.append(len(self.pieces))
            yield message
        self._reached.append(len(self.pieces))

    def starts(self) -> list[int]:
        """Where the text of each message begins, in characters, and where that of the last one ends."""
        ends = [0, *accumulate(map(len, self.pieces))]
        return [ends[reached] for reached in self._reached]


def _writes_apart(tree: nodes.Template) -> bool:
    """Whether a template goes through the messages once, in a loop that writes each whatever the others are."""
    loops = [node for node in tree.body if isinstance(node, nodes.For) and _is_messages(node.iter)]
    plain = [loop for loop in loops if not (loop.test or loop.else_ or loop.recursive)]
    names = [node.name for node in tree.find_all(nodes.Name)]
    stateful = {"loop", "namespace", "cycler", "joiner", "self"}.intersection(names)
    kinds = (nodes.NSRef, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.Extends, nodes.Include, nodes.Break)
    return len(plain) == names.count("messages") == 1 and not stateful and next(tree.find_all(kinds), None) is None


def _is_messages(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "messages"


def _find_words(tree: nodes.Template) -> set[str]:
    """The strings in a template's code, and `.tool_calls`: the roles and the field that it may know."""
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return constants | ({"tool_calls"} & {node.attr for node in tree.find_all(nodes.Getattr)})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is no such file. Raises InputError if it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); get the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_token(value: Any) -> str:
    """A special token's text, given as itself or as {"content": ...}; "" for anything else."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else ""


def _pick_default(template: Any, path: Path) -> str:
    """The text of a `chat_template` entry, which may be a list of {"name", "template"} or a dict of named ones."""
    if isinstance(template, list) and all(isinstance(item, Mapping) for item in template):
        template = {item.get("name"): item.get("template") for item in template}
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise InputError(f'{path}: chat_template must be a string, or named templates with one called "default"')
    return template


class _GenerationTag(Extension):
    """`{% generation %}`, with which MiniMax-Text-01's template marks the assistant's text: rendered as its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _build_environment() -> Sandbox:
    functions = {"raise_exception": _raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}
    return Sandbox({"tojson": _write_json}, functions, [_GenerationTag, loopcontrols])


def _write_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """JSON as it is: Jinja's own filter escapes HTML."""
    return json.dumps(value, **{"ensure_ascii": False, "indent": indent, **options})


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
