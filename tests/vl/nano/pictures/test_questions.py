from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import vl
from vl.evaluation.metrics import METRICS
from vl.nano.kinds import KINDS, Facts
from vl.nano.mix import Mix
from vl.nano.pictures import questions
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.chart_questions import _ChartQuestions
from vl.nano.pictures.emoji import _EmojiQuestions
from vl.nano.pictures.pages import _PageQuestions
from vl.nano.pictures.questions import (
    Asked,
    Questions,
    Topic,
    in_haste,
    listed,
    reckon,
    sorts,
    spelled_out,
    starred,
    topics,
)
from vl.nano.pictures.relations import _SceneQuestions
from vl.nano.pictures.table_questions import _TableQuestions
from vl.nano.render import render

T = TypeVar("T")

DRAWN = Mix(sizes=(SizeRange(320, 480, 1.0),))  # room for a receipt, a window, a legend


def shown(kind: str) -> list[Facts]:
    """Of 60 pictures, of pages 200, which differ more; none where what a kind is drawn from is not here."""
    try:
        return [render(11, index, DRAWN.only(kind)).facts for index in range(200 if kind == "pages" else 60)]
    except vl.ConfigError:
        return []


FACTS = {kind: facts for kind in KINDS if (facts := shown(kind))}


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
    assert tables.pop("sorts").keys() == tables.keys()
    named = {topic["end"] for kind in tables.values() for topic in kind.values() if "end" in topic}
    assert named == set(ends)
    assert topics()["charts.value"].end == tuple(ends["number"])


def test_every_phrasing_is_asked_about_some_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `questions.toml` lists is what is asked: nothing is left over, and no question has an empty slot.

    Of equally likely options the next one is taken instead of any, so that no phrasing waits for luck.
    """
    turns: Counter[tuple[object, ...]] = Counter()

    def next_of(_: np.random.Generator, options: Sequence[T]) -> T:
        turns[tuple(options)] += 1
        return options[turns[tuple(options)] % len(options)]

    monkeypatch.setattr(questions, "pick", next_of)
    rng, prompts = np.random.default_rng(3), set()
    for kind, made in ((kind, KINDS[kind]) for kind in FACTS):
        prompts |= (
            {made.ask(rng, shown, "all").prompt for shown in FACTS[kind] for _ in range(25)} if made.ask else set()
        )
    text = "\n".join(prompts)
    assert "{" not in text
    asked = ((name, topic) for name, topic in topics().items() if name.split(".")[0] in (*FACTS, "scenes"))
    for name, topic in asked:
        for phrasing in topic.ask:
            assert re.search(f"^{pattern(phrasing)}", text, re.MULTILINE), (name, phrasing)
        for end in topic.end:
            assert end in text, (name, end)


class Made(Questions[str]):
    kind = "made"

    def never(self) -> Asked | None:
        return None

    def ever(self) -> Asked:
        return self.say("one", self.facts, x="w")

    def more(self) -> Asked:
        return self.whether("two", True, x="w")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    phrasings = {
        "made.one": Topic(
            "vqa", ("1 {x}?", "2 {x}?", "3 {x}?"), (), ("5 {x}?", "6 {x}?"), ("7 {x}?", "8 {x}?", "9 {x}?")
        ),
        "made.two": Topic("counting", ("4 {x}?",), ("So.", "Thus.")),
    }
    monkeypatch.setattr("vl.nano.pictures.questions.topics", lambda: phrasings)
    shares = {"never": 2.0, "ever": 3.0, "more": 1.0}
    monkeypatch.setattr("vl.nano.pictures.questions.sorts", lambda kind: shares)


@pytest.mark.usefixtures("made")
def test_phrasings_and_texts_of_a_slot_are_each_as_likely() -> None:
    put = Made(np.random.default_rng(0), "7")
    asked = [put.say_any({"one": "yes", "two": "no"}, x=("u", "v")) for _ in range(4000)]
    first = Counter(one.prompt[:3] for one in asked)
    assert set(first) == {f"{number} {x}" for number in "1234" for x in "uv"}
    assert 400 < min(first.values()) < max(first.values()) < 600
    assert {one.answer for one in asked if one.metric == "counting"} == {"no"}
    assert {one.prompt[4:] for one in asked if one.metric == "vqa"} == {""}
    ends = Counter(one.prompt.partition("? ")[2] for one in asked if one.prompt[0] == "4")
    assert set(ends) == {"", "So.", "Thus."}
    assert 0.4 < ends[""] / ends.total() < 0.6
    assert put.say("one", "8", metric="ocr", thought="7 #1", x="w")[1:] == ("8", "ocr", "7 #1", None)


@pytest.mark.usefixtures("made")
def test_sorts_are_asked_as_their_shares_say_and_give_way_where_not_admitted() -> None:
    put = Made(np.random.default_rng(0), "7")
    # "never" is drawn first 2 times in 6, and then "ever" 3 times in 4: 1/2 + 1/3 * 3/4 of all.
    answers = Counter(put.ask().answer for _ in range(2000))
    assert set(answers) == {"7", "yes"}
    assert 0.7 < answers["7"] / answers.total() < 0.8
    assert {put.ask(("never", "more")).answer for _ in range(9)} == {"yes"}
    with pytest.raises(ValueError, match="admits no question of never"):
        put.ask(("never",))
    with pytest.raises(ValueError, match="no such kind of question: b; there are never, ever, more"):
        put.ask(("b",))


def test_each_sort_is_a_question_that_can_be_put() -> None:
    for made in (_SceneQuestions, _EmojiQuestions, _PageQuestions, _ChartQuestions, _TableQuestions):
        assert all(callable(getattr(made, sort)) for sort in sorts(made.kind))
        assert all(share > 0 for share in sorts(made.kind).values())


@pytest.mark.parametrize(("names", "text"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_lists_read_as_english(names: str, text: str) -> None:
    assert listed(tuple(names)) == text


def talks() -> Iterator[tuple[Facts, Asked]]:
    """Questions on pictures of every kind that is asked about."""
    for name, made in ((name, KINDS[name]) for name in FACTS):
        facts, rng = FACTS[name], np.random.default_rng(1)
        for number in range(2400 if name == "pages" else 1200 if made.ask else 0):
            shown = facts[number % len(facts)]
            yield shown, made.ask(rng, shown, "learnt")


TALKS = list(talks())


def test_yes_and_no_are_as_likely() -> None:
    """Of pictures of nothing, of which yes is never right, apart."""
    said: dict[str, Counter[str]] = {}
    for facts, asked in TALKS:
        if asked.answer in ("yes", "no"):
            said.setdefault(type(facts).__name__, Counter())[asked.answer] += 1
    assert set(said.pop("NothingFacts")) == {"no"}
    assert set(said) >= {"SceneFacts", "EmojiFacts", "PageFacts", "ChartFacts", "TableFacts"}
    for kind, answers in said.items():
        assert answers.total() >= 5, kind
        # Five standard deviations.
        assert abs(answers["yes"] / answers.total() - 0.5) < 2.5 / answers.total() ** 0.5, (kind, answers)


def amount(text: str) -> float:
    """The number at the end of what is looked at, such as "Mar $12"."""
    found = re.search(r"\$?([\d,.]+)%?$", text)
    assert found, text
    return float(found[1].replace(",", ""))


def test_answers_follow_from_what_is_looked_at() -> None:
    seen = Counter()
    for _, (prompt, answer, metric, thought, _) in TALKS:
        if not thought:
            continue
        looked_at, _, then = thought.partition("; ")
        compared = re.fullmatch(r"(.+[\d%])([<>])(.+)", then)
        if answer.startswith("There is no "):
            name = answer[12:-1].removesuffix(" shape")
            assert name not in looked_at
            assert then in ("", f"no {answer[12:-1]}")
        elif metric == "counting":
            numbers = re.findall(r"#(\d+)", thought)
            assert numbers == [str(n + 1) for n in range(len(numbers))]
            assert answer == str(len(numbers)), (prompt, thought)
        elif ": " in then:
            steps = then.split(": ")[1].split(", ")
            for step in steps:
                one, sign, other, result = [*re.split(r"([-+])|=", step)[:3], step.split("=")[1]]
                assert int(result) == (int(one) + int(other) if sign == "+" else int(one) - int(other)), thought
            assert int(steps[-1].split("=")[1]) == amount(answer), (prompt, thought)
            seen["reckoned"] += 1
        elif compared:
            assert (amount(compared[1]) < amount(compared[3])) == (compared[2] == "<"), thought
            assert all(side in looked_at for side in (compared[1].split()[-1], compared[3].split()[-1]))
            seen["compared"] += 1
        elif " *" in thought:
            best = [one for one in re.split(", |: ", thought) if one.endswith(" *")][-1].removesuffix(" *")
            assert answer in best, (prompt, thought, answer)
            seen["extreme"] += 1
        elif answer not in ("yes", "no") and not answer.startswith(("at the", "on the", "in the", "left", "right")):
            assert answer.removesuffix(" shape") in thought + "above below", (prompt, thought, answer)
        seen[metric] += 1
    assert set(seen) == {"counting", "vqa", "chart", "table", "compared", "reckoned", "extreme"}
    assert sum(map(seen.get, ("counting", "vqa", "chart", "table"))) > 0.5 * len(TALKS)


def test_each_that_is_beyond_all_before_it_has_a_star() -> None:
    seen, values = ["a 3", "b 1", "c 3", "d 7", "e 0"], [3, 1, 3, 7, 0]
    assert starred(seen, values, highest=True) == "a 3 *, b 1, c 3, d 7 *, e 0"
    assert starred(seen, values, highest=False) == "a 3 *, b 1 *, c 3, d 7, e 0 *"


@given(st.integers(0, 100), st.integers(0, 100))
@example(80, 22)
@example(7, 0)
def test_sums_go_by_tens_and_then_by_units(one: int, other: int) -> None:
    high, low = max(one, other), min(one, other)
    for sign, result in (("-", high - low), ("+", high + low)):
        steps = reckon(high, low, sign).split(", ")
        assert len(steps) == 2 - (low < 10 or low % 10 == 0)
        assert steps[0].startswith(f"{high}{sign}")
        assert steps[-1].endswith(f"={result}")
    assert reckon(80, 22, "-") == "80-20=60, 60-2=58"
    assert reckon(80, 22, "+") == "80+20=100, 100+2=102"


def test_what_is_written_in_haste_keeps_its_words_of_meaning() -> None:
    assert in_haste("How many {things} are there in the picture?") == "How many {things} in picture?"
    assert in_haste('Where is the emoji "{name}"?') == 'Where emoji "{name}"?'
    assert in_haste("{head} of {name}: what is it?") == "{head} {name}: what?"
    every = [text for topic in topics().values() for text in (*topic.ask, *topic.more)]
    for text in every:
        hasty = in_haste(text)
        assert re.findall(r"\{\w+\}", hasty) == re.findall(r"\{\w+\}", text)
        assert re.findall(r"\b(?:not|no|how|than|left|right|more|less)\b", hasty) == re.findall(
            r"\b(?:not|no|how|than|left|right|more|less)\b", text
        )


def test_phrasings_for_testing_are_never_learnt() -> None:
    for name, topic in topics().items():
        assert topic.held, name
        assert not set(topic.ask) & set(topic.held)
        slots = [set(re.findall(r"\{(\w+)\}", " ".join(texts))) for texts in (topic.held, topic.more, topic.ask)]
        assert slots[0] | slots[1] <= slots[2], name
        assert len({*topic.ask, *topic.more}) == len(topic.ask) + len(topic.more), name
        assert all(form == " ".join(form.split()) and form[-1] in ".?" for form in topic.more), name
    every = {
        part: {text for topic in topics().values() for text in getattr(topic, part)} for part in ("ask", "more", "held")
    }
    learnt = {bare(form(text)) for text in every["ask"] | every["more"] for form in (str, in_haste)}
    assert not learnt & set(map(bare, every["held"]))
    assert len(every["more"]) > 3000


def bare(phrasing: str) -> str:
    """A phrasing whatever its slots are called and whether they are in quotes."""
    return re.sub(r"\{\w+\}", "{}", phrasing).replace('"', "")


def test_alternatives_are_spelled_out() -> None:
    assert spelled_out("[Say|Tell me] {x}[| now].") == ["Say {x}.", "Say {x} now.", "Tell me {x}.", "Tell me {x} now."]
    assert spelled_out("How [many {x}|much]?") == ["How many {x}?", "How much?"]


@pytest.mark.usefixtures("made")
def test_training_has_phrasings_of_its_own_and_questions_as_people_type_them() -> None:
    put = Made(np.random.default_rng(0), "7", "learnt")
    prompts = [put.say("one", "8", x="w").prompt for _ in range(2000)]
    seen = Counter(found[0] for prompt in prompts if (found := re.search(r"[1-9](?= w)", prompt)))
    assert set(seen) == set("123789")
    assert 0.6 < sum(seen[number] for number in "789") / len(prompts) < 0.8
    assert 0.1 < sum(prompt[-1] != "?" or not prompt[0].isdigit() for prompt in prompts) / len(prompts) < 0.3
    topic = Topic("vqa", ("a",), (), ("h",), ("m", "n"))
    rng = np.random.default_rng(1)
    for part, expected in (("all", "a"), ("learnt", "amn"), ("held-out", "h")):
        assert {topic.wording(rng, part) for _ in range(60)} == set(expected)


@pytest.mark.usefixtures("made")
def test_questions_for_testing_are_put_in_phrasings_of_their_own() -> None:
    for part, expected in (("all", "123"), ("held-out", "56")):
        put = Made(np.random.default_rng(0), "7", part)
        assert {put.say("one", "8", x="w").prompt for _ in range(60)} == {f"{number} w?" for number in expected}
