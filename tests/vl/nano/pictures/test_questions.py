from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib import resources

import numpy as np
import pytest

from vl.evaluation.metrics import METRICS
from vl.nano.kinds import KINDS
from vl.nano.mix import Mix
from vl.nano.pictures.questions import Topic, ask_one_of, listed, say, say_any, topics
from vl.nano.render import render


def pattern(phrasing: str) -> str:
    """A regular expression for a phrasing with its slots filled."""
    return "".join(".+" if part[:1] == "{" else re.escape(part) for part in re.split(r"(\{\w+\})", phrasing))


def test_each_topic_has_its_own_phrasings_and_a_metric() -> None:
    for name, topic in topics().items():
        assert topic.metric in METRICS, name
        assert len(set(topic.ask)) == len(topic.ask) > 0
        for phrasing in topic.ask:
            assert phrasing == phrasing.strip()
            assert phrasing[-1] in ".?"
            assert re.fullmatch(r"[^{}]*(\{[a-z]+\}[^{}]*)*", phrasing), phrasing


def test_every_closing_request_is_one_of_the_lists() -> None:
    tables = tomllib.loads(resources.files("vl.nano.pictures").joinpath("questions.toml").read_text("utf-8"))
    ends = tables.pop("ends")
    named = {topic["end"] for kind in tables.values() for topic in kind.values() if "end" in topic}
    assert named == set(ends)
    assert topics()["charts.value"].end == tuple(ends["number"])


def test_every_phrasing_is_asked_about_some_picture() -> None:
    """What `questions.toml` lists is what is asked: nothing is left over, and no question has an empty slot."""
    prompts = set()
    for kind, made in KINDS.items():
        for index in range(80):
            facts = render(11, index, Mix(sizes=Mix().sizes[:1]).only(kind)).facts
            rng = np.random.default_rng((3, index))
            prompts |= {made.ask(rng, facts).prompt for _ in range(50)} if made.ask else set()
    text = "\n".join(prompts)
    assert "{" not in text
    for name, topic in topics().items():
        for phrasing in topic.ask:
            assert re.search(f"^{pattern(phrasing)}", text, re.MULTILINE), (name, phrasing)
        for end in topic.end:
            assert end in text, (name, end)


def test_phrasings_and_texts_of_a_slot_are_each_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "a.one": Topic("vqa", ("1 {x}?", "2 {x}?", "3 {x}?"), ()),
        "a.two": Topic("counting", ("4 {x}?",), ("So.", "Thus.")),
    }
    monkeypatch.setattr("vl.nano.pictures.questions.topics", lambda: made)
    rng = np.random.default_rng(0)
    asked = [say_any(rng, {"a.one": "yes", "a.two": "no"}, x=("u", "v")) for _ in range(4000)]
    first = Counter(one.prompt[:3] for one in asked)
    assert set(first) == {f"{number} {x}" for number in "1234" for x in "uv"}
    assert 400 < min(first.values()) < max(first.values()) < 600
    assert {one.answer for one in asked if one.metric == "counting"} == {"no"}
    assert {one.prompt[4:] for one in asked if one.metric == "vqa"} == {""}
    assert {one.prompt.split("? ")[1] for one in asked if one.prompt[0] == "4"} == {"So.", "Thus."}
    assert say(rng, "a.one", "7", metric="ocr", x="w")[1:] == ("7", "ocr")


def test_a_question_that_a_picture_does_not_admit_gives_way() -> None:
    made = {"never": lambda rng, facts: None, "ever": lambda rng, facts: facts}
    assert all(ask_one_of(np.random.default_rng(i), "asked", made, tuple(made)) == "asked" for i in range(9))
    with pytest.raises(ValueError, match="admits no question of never"):
        ask_one_of(np.random.default_rng(0), "asked", made, ("never",))
    with pytest.raises(ValueError, match="no such kind of question: b; there are never, ever"):
        ask_one_of(np.random.default_rng(0), "asked", made, ("b",))


@pytest.mark.parametrize(("names", "text"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_lists_read_as_english(names: str, text: str) -> None:
    assert listed(tuple(names)) == text
