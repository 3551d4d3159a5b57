"""Grammars of calls: of many functions, and made once. What a model says by them: tests/vl/server/test_calls.py."""

from __future__ import annotations

from typing import Any

import pytest

import vl
from vl.engine import structured
from vl.engine.calls import Calls
from vl.engine.making import NotNow
from vl.engine.structured import Forms

MOST = 1024
BEGUN = "```typescript\nfunctions."


def strict(number: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {f"p{number}": {"type": "integer"}}, "additionalProperties": False}
    return {"name": f"f{number}", "parameters": schema, "strict": True}


@pytest.mark.parametrize(("named", "text"), [("", ""), (f"f{MOST - 1}", ""), (None, BEGUN)])
def test_as_many_functions_as_are_taken_can_be_called(tiny_model: vl.MiniMaxVL, named: str | None, text: str) -> None:
    token, encode = 3, tiny_model.processor.tokenizer.encode_plain
    tools = [{"name": f"f{number}"} for number in range(MOST)]
    matcher = Forms(tiny_model).form(None, Calls.of(tools, token, named=named)).matcher
    text += "" if named else f"f{MOST - 1}("
    answer = [*([] if named is not None else [token]), *encode(f'{text}{{"a": 1}})\nfunctions.f7()\n```')]
    assert matcher.try_consume_tokens(answer) == len(answer), matcher.get_error()
    assert matcher.is_accepting()
    with pytest.raises(vl.InputError, match="tools must be at most 1,024 functions, not 1,025"):
        Calls.of([*tools, tools[0]], token)


def test_schemas_are_tried_once_however_many_they_are(
    tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than grammars are kept: or each answer would have all of them made again."""
    forms, trials = Forms(tiny_model), list[str]()
    calls = Calls.of([strict(number) for number in range(structured._KEPT + 6)], 3)
    monkeypatch.setattr(structured, "try_apart", trials.append)
    for _ in range(2):
        forms.form(None, calls)
        assert len(trials) == structured._KEPT + 6


def test_a_schema_that_was_not_tried_is_tried_when_it_is_asked_for_again(
    tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(key: str) -> None:
        raise NotNow("response_format cannot be tried now")

    forms, calls = Forms(tiny_model), Calls.of([strict(0)], 3)
    monkeypatch.setattr(structured, "try_apart", busy)
    with pytest.raises(NotNow, match="tools: the parameters of 'f0' cannot be tried now"):
        forms.form(None, calls)
    monkeypatch.undo()
    assert forms.form(None, calls)


def test_a_name_that_no_tokens_spell_is_refused() -> None:
    with pytest.raises(vl.InputError, match=r"tool 2: a name has no .*halves of surrogate pairs, 'f.ud800' has"):
        Calls.of([strict(0), {"name": "f\ud800"}], 3)
