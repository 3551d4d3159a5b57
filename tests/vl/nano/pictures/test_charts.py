from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl.evaluation.metrics import METRICS
from vl.nano.pictures import chart_pens
from vl.nano.pictures.canvas import COLOURS, SizeRange
from vl.nano.pictures.chart_facts import KINDS, ChartFacts, Series
from vl.nano.pictures.chart_questions import ask_chart, describe_chart
from vl.nano.pictures.charts import SMALLEST, draw_chart
from vl.nano.pictures.questions import Asked

SIZES = (SizeRange(200, 420, 1.0),)


def drawn(seed: int, count: int, by_matplotlib: float) -> list[tuple[Image.Image, ChartFacts]]:
    return [draw_chart(np.random.default_rng((seed, i)), SIZES, by_matplotlib=by_matplotlib) for i in range(count)]


OWN, PLOTTED = drawn(1, 160, 0.0), drawn(2, 70, 1.0)
CHARTS = [*OWN, *PLOTTED]


def shown(image: Image.Image, facts: ChartFacts, colour: tuple[int, int, int]) -> np.ndarray:
    """bool [rows, columns] of the plot: pixels of exactly this colour."""
    left, top, right, bottom = (round(edge) for edge in facts.plot)
    return (np.asarray(image)[top:bottom, left:right] == colour).all(axis=-1)


def runs(profile: np.ndarray) -> list[int]:
    """The highest value of each run of columns that hold several pixels of a colour, runs of a pixel left out."""
    groups = (list(group) for full, group in itertools.groupby(profile, key=lambda v: v > 2) if full)
    return [max(group) for group in groups if len(group) > 2]


@pytest.mark.parametrize("by_matplotlib", [0.0, 1.0])
def test_a_chart_is_a_function_of_the_random_state(by_matplotlib: float) -> None:
    for seed in range(4):
        (a, a_facts), (b, b_facts) = (
            draw_chart(np.random.default_rng(seed), SIZES, by_matplotlib=by_matplotlib) for _ in range(2)
        )
        assert a_facts == b_facts
        assert a.tobytes() == b.tobytes()
        first, second = (ask_chart(np.random.default_rng(seed), a_facts) for _ in range(2))
        assert first == second
    assert len({draw_chart(np.random.default_rng(s), SIZES)[0].tobytes() for s in range(8)}) == 8


def test_bars_are_as_long_as_their_values() -> None:
    seen = 0
    for image, facts in CHARTS:
        if "bar" not in facts.kind:
            continue
        left, top, right, bottom = facts.plot
        length = right - left if facts.sideways else bottom - top
        values: dict[tuple[int, int, int], list[float]] = {}
        for series in facts.series:
            for value, rgb in zip(series.values, series.rgb, strict=True):
                values.setdefault(rgb, []).append(value)
        for rgb, expected in values.items():
            if max(rgb) < 30 or min(rgb) > 240:  # may be the ink of axes and text as well
                continue
            lengths = runs(shown(image, facts, rgb).sum(axis=1 if facts.sideways else 0))
            assert len(lengths) == len(expected), facts
            for pixels, value in zip(lengths, expected, strict=True):
                assert abs(pixels - value / facts.top * length) <= 2 + 0.01 * length, facts
            seen += 1
    assert seen > 80


def test_slices_are_as_large_as_their_values() -> None:
    pies = [(image, facts) for image, facts in CHARTS if facts.kind == "pie chart"]
    for image, facts in pies:
        series = facts.series[0]
        areas = np.array([shown(image, facts, rgb).sum() for rgb in series.rgb])
        assert np.abs(areas / areas.sum() - np.array(series.values) / sum(series.values)).max() < 0.05
        assert sum(series.values) == facts.top
    assert len(pies) > 30


def test_lines_pass_through_their_values() -> None:
    lines = [(image, facts) for image, facts in CHARTS if facts.kind == "line chart"]
    for image, facts in lines:
        left, top, right, bottom = facts.plot
        slot = (right - left) / len(facts.categories)
        for series in facts.series:
            for at, value in enumerate(series.values):
                x, y = left + (at + 0.5) * slot, bottom - value / facts.top * (bottom - top)
                near = np.asarray(image)[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].reshape(-1, 3)
                assert np.abs(near.astype(int) - series.rgb[0]).sum(axis=1).min() < 60, (facts, at)
        for values in zip(*(series.values for series in facts.series), strict=True):
            assert len(set(values)) == len(values)
    assert len(lines) > 30


def test_characters_are_printed_where_the_boxes_say() -> None:
    for image, facts in CHARTS:
        pixels = np.asarray(image.convert("L"), dtype=int)
        for character, (left, top, right, bottom) in facts.boxes:
            assert character.isascii()
            assert character.isprintable()
            assert left >= -1
            assert top >= -1
            assert right <= facts.width + 1
            assert bottom <= facts.height + 1
            part = pixels[max(0, round(top)) : round(bottom) + 1, max(0, round(left)) : round(right) + 1]
            assert part.max() - part.min() > 25, (character, facts)


def test_everything_named_is_printed_once_and_apart() -> None:
    for _, facts in CHARTS:
        names = [facts.title, facts.label, *facts.categories]
        names += [text for _, text in facts.ticks] if facts.kind != "pie chart" else []
        names += [series.name for series in facts.series]
        names += [facts.write(v) for s in facts.series for v in s.values] if facts.printed else []
        expected = Counter(character for name in names for character in name if character != " ")
        assert Counter(character for character, _ in facts.boxes) == expected
        boxes = np.array([box for _, box in facts.boxes])
        x = np.minimum(boxes[:, None, 2], boxes[None, :, 2]) - np.maximum(boxes[:, None, 0], boxes[None, :, 0])
        y = np.minimum(boxes[:, None, 3], boxes[None, :, 3]) - np.maximum(boxes[:, None, 1], boxes[None, :, 1])
        overlap = (x > 2) & (y > 4)
        np.fill_diagonal(overlap, False)
        assert not overlap.any(), facts


def test_ticks_are_labelled_at_their_values() -> None:
    for _, facts in CHARTS:
        if facts.kind == "pie chart":
            continue
        printed = "".join(character for character, _ in facts.boxes)
        left, top, right, bottom = facts.plot
        for value, text in facts.ticks:
            share = value / facts.top
            at = left + share * (right - left) if facts.sideways else bottom - share * (bottom - top)
            off = []
            for found in re.finditer(f"(?={re.escape(text)})", printed):
                first, last = facts.boxes[found.start()][1], facts.boxes[found.start() + len(text) - 1][1]
                size = (first[3] - first[1]) / 0.95
                middle = (first[0] + last[2]) / 2 if facts.sideways else first[3] - 0.55 * size
                off.append(abs(middle - at) - 0.25 * size)
            assert min(off) <= 0, (facts, text)


def test_unprinted_values_lie_on_ticks_or_between_at_halves_or_tenths() -> None:
    between = []
    for _, facts in CHARTS:
        if facts.printed or facts.kind == "pie chart":
            continue
        tenths = np.array([series.values for series in facts.series]) / facts.step * 10
        assert np.abs(tenths - tenths.round()).max() < 1e-3
        assert tenths.min() > 0.9
        assert tenths.max() >= 10 * facts.top / facts.step - 5 - 1e-3
        halves = np.abs(tenths / 5 - (tenths / 5).round()).max() < 1e-3
        assert halves or len(facts.series) == 1
        between.append(not halves)
    assert 0.2 < np.mean(between) < 0.7


def test_colours_are_what_they_are_called_and_told_apart() -> None:
    for _, facts in CHARTS:
        pairs = {(name, rgb) for s in facts.series for name, rgb in zip(s.colours, s.rgb, strict=True)}
        assert len({name for name, _ in pairs}) == len(pairs)
        assert {name for name, _ in pairs} <= set(COLOURS)
    assert {name for _, f in CHARTS for s in f.series for name in s.colours} == set(COLOURS)


def refers(facts: ChartFacts, words: str) -> float:
    """The value that "Rome", "Sales at Rome" or "the red bar" stands for."""
    by_name = dict(zip(facts.categories, facts.series[0].values, strict=True))
    if found := re.fullmatch(r"the (\w+) (?:bar|slice)", words):
        return dict(zip(facts.series[0].colours, facts.series[0].values, strict=True))[found[1]]
    if found := re.fullmatch(r"(\w+) at (.+)", words):
        series = next(series for series in facts.series if series.name == found[1])
        return dict(zip(facts.categories, series.values, strict=True))[found[2]]
    return by_name[words]


def number(text: str) -> float:
    return float(re.sub(r"[$%,]", "", text))


def of(facts: ChartFacts, prompt: str) -> Series:
    named = [series for series in facts.series if series.name and re.search(rf"\b{series.name}\b", prompt)]
    return named[0] if named else facts.series[0]


def check(facts: ChartFacts, asked: Asked) -> str:
    """Finds the answer again from the prompt and the data; returns what kind of question it was."""
    prompt, answer = asked.prompt.split("?")[0], asked.answer
    if found := re.fullmatch(r"There is no (\w+)\.", answer):
        assert found[1] not in facts.categories
        assert found[1] in prompt
        return "absent"
    if found := re.search(
        r"(?:has|with) the value (\S+?)(?:\. .+|\.?$)|Whose value is (\S+)|What does (\S+) belong to", prompt
    ):
        value = next(text for text in found.groups() if text)
        assert [
            n for n, v in zip(facts.categories, facts.series[0].values, strict=True) if facts.write(v) == value
        ] == [answer]
        return "lookup"
    if found := re.search(
        r"(?:sum of|How much are|Add|What do) (.+?) and (.+?)(?: together| come to together|:.*)?$", prompt
    ):
        assert number(answer) == refers(facts, found[1]) + refers(facts, found[2])
        return "sum"
    if found := re.fullmatch(
        r"(?:Is|Does)(?: the value of)? (.+?) (?:have a )?(?:(greater|larger|higher|above)|smaller|less|lower|below)"
        r"(?: value)? (?:than|that of) (.+)",
        prompt,
    ):
        a, b = refers(facts, found[1]), refers(facts, found[3])
        assert answer == ("yes" if (a > b) == bool(found[2]) else "no")
        assert abs(a - b) >= 0.05 * facts.top
        return "compare"
    if found := re.fullmatch(
        r"How many bars are (?:(above|more than|greater than)|below|less than|under) (.+)", prompt
    ):
        limit = number(found[2])
        values = np.array(facts.series[0].values)
        assert answer == str((values > limit).sum() if found[1] else (values < limit).sum())
        return "beyond"
    if prompt.startswith(("How many", "Count the")):
        assert asked.metric == "counting"
        across = len(facts.categories) * len(facts.series)
        things = {"bars": across, "slices": across, "lines": len(facts.series), "series": len(facts.series)}
        assert int(answer) == things.get(prompt.split()[2].strip("."), len(facts.categories))
        return "count"
    if found := re.search(r"(highest|lowest) (?:value(?: in the chart)?|number shown)\b", prompt):
        if prompt.startswith(("Which", "For which")) or " with the " in prompt:
            return extreme(facts, asked, found[1] == "highest")
        values = [value for series in facts.series for value in series.values]
        assert number(answer) == pytest.approx(max(values) if found[1] == "highest" else min(values))
        return "value of extreme"
    if re.search("highest|largest|biggest|lowest|smallest", prompt):
        return extreme(facts, asked, bool(re.search("highest|largest|biggest", prompt)))
    if found := re.search(
        r"(?:difference between|How far apart are) (.+) and (.+)|Subtract (.+) from (.+):"
        r"|(?:how much is|How much more is) (.+?) (?:greater )?than (.+)",
        prompt,
    ):
        first, second = (word for word in found.groups() if word)
        assert number(answer) == abs(refers(facts, first) - refers(facts, second))
        return "difference"
    if re.search(r"\btitle of the chart|chart (called|titled)", prompt):
        assert answer == facts.title
        return "title"
    if "value axis" in prompt:
        assert answer == facts.label
        return "label"
    if answer in ("bar", "line", "pie", "vertical", "horizontal"):
        assert answer in facts.kind or facts.sideways == (answer == "horizontal")
        return "kind"
    if answer in COLOURS:
        series = of(facts, prompt)
        places = [at for at, name in enumerate(facts.categories) if re.search(rf"\b{name}\b", prompt)]
        assert answer == series.colours[places[0] if places else 0]
        return "colour"
    named = re.search(rf"\b({'|'.join(COLOURS)})\b", prompt)
    if re.match(r"[$\d]", answer) and asked.metric == "chart":
        places = [at for at, name in enumerate(facts.categories) if re.search(rf"\b{name}\b", prompt)]
        series = next((s for s in facts.series if named and len(facts.series) > 1 and s.colours[0] == named[1]), None)
        series = series or of(facts, prompt)
        assert number(answer) == pytest.approx(series.values[places[0] if places else series.colours.index(named[1])])
        return "value"
    assert named
    by_colour = {series.colours[0]: series.name for series in facts.series}
    if len(facts.series) == 1:
        by_colour = dict(zip(facts.series[0].colours, facts.categories, strict=True))
    assert answer == by_colour[named[1]]
    return "named by colour"


def extreme(facts: ChartFacts, asked: Asked, highest: bool) -> str:
    values = sorted(zip(of(facts, asked.prompt).values, facts.categories, strict=True), reverse=highest)
    assert asked.answer == values[0][1]
    assert abs(values[0][0] - values[1][0]) >= 0.05 * facts.top
    return "extreme"


def test_answers_follow_from_the_data() -> None:
    rng = np.random.default_rng(5)
    asked = [(facts, ask_chart(rng, facts)) for _, facts in CHARTS for _ in range(12)]
    kinds = Counter(check(facts, question) for facts, question in asked)
    assert len(kinds) == 15, kinds
    assert min(kinds.values()) >= 15, kinds
    for _, question in asked:
        metric = METRICS[question.metric]
        assert metric.right(metric.score([question.reference], question.answer))
        assert question.answer.isascii()
    said = Counter(q.answer for _, q in asked if q.answer in ("yes", "no"))
    assert 0.4 < said["yes"] / said.total() < 0.6
    assert len({question.prompt for _, question in asked}) > 0.5 * len(asked)


def test_values_are_asked_only_where_they_can_be_read() -> None:
    rng = np.random.default_rng(6)
    silent = [facts for _, facts in CHARTS if facts.kind == "pie chart" and not facts.printed]
    assert silent
    for facts in silent * 5:
        question = ask_chart(rng, facts)
        assert question.metric == "counting" or not re.match(r"[$\d.,%]+$", question.answer) or facts.names == "year"


def test_values_off_an_axis_may_be_off_by_a_twentieth_of_it() -> None:
    rng, within = np.random.default_rng(6), METRICS["chart"]
    for facts in (facts for _, facts in CHARTS if facts.kind != "pie chart"):
        question = ask_chart(rng, facts, kinds=("value", "extreme_value"))
        if facts.printed:
            assert question.reference == question.answer
            continue
        value = number(question.answer)
        for share, right in ((0.049, True), (-0.049, True), (0.051, False), (-0.051, False)):
            read = f"{value + share * facts.top:.4f}"
            assert within.right(within.score([question.reference], read)) == right, (question, read)


def test_years_are_not_judged_within_five_percent() -> None:
    rng = np.random.default_rng(7)
    years = [facts for _, facts in CHARTS if facts.names == "year"]
    named = [q for facts in years for q in (ask_chart(rng, facts) for _ in range(20)) if q.answer in facts.categories]
    assert named
    assert {question.metric for question in named} == {"vqa"}


def test_captions_name_the_kind_the_title_and_what_is_printed() -> None:
    for _, facts in CHARTS:
        caption = describe_chart(facts)
        assert caption.startswith(f"A {facts.kind}")
        assert (f'"{facts.title}"' in caption) == bool(facts.title)
        values = [facts.write(value) for series in facts.series for value in series.values]
        assert all(name in caption for name in facts.categories)
        if facts.printed:
            assert all(value in caption for value in values)
        if len(facts.series) > 1:
            assert all(series.name in caption for series in facts.series)


def test_charts_vary() -> None:
    kinds = Counter(facts.kind for _, facts in OWN)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 15
    assert {len(facts.categories) for _, facts in OWN if facts.kind != "pie chart"} == set(range(3, 9))
    assert {len(facts.categories) for _, facts in OWN if facts.kind == "pie chart"} == set(range(3, 7))
    assert {len(facts.series) for _, facts in OWN} == {1, 2, 3}
    assert {facts.unit for _, facts in OWN} >= {"", "%", "$"}
    assert len({facts.title for _, facts in OWN}) > 100
    assert len({facts.top for _, facts in OWN}) > 25
    assert 0.3 < np.mean([facts.printed for _, facts in OWN]) < 0.7
    assert len({image.getpixel((0, 0)) for image, _ in OWN}) > 80


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), longer=st.integers(64, 900))
def test_sizes_are_kept_where_a_chart_fits(seed: int, longer: int) -> None:
    image, facts = draw_chart(np.random.default_rng(seed), (SizeRange(longer, longer, 1.0),), by_matplotlib=0.1)
    assert image.size == (facts.width, facts.height)
    assert image.mode == "RGB"
    assert image.width >= SMALLEST[0]
    assert image.height >= SMALLEST[1]
    assert max(image.size) <= max(longer, 300)
    assert all(bottom - top >= 0.95 * 12 - 1e-6 for _, (_, top, _, bottom) in facts.boxes if facts.label == "")


@pytest.mark.parametrize("by_matplotlib", [0.0, 1.0])
def test_the_largest_canvas(by_matplotlib: float) -> None:
    rng = np.random.default_rng(3)
    image, facts = draw_chart(rng, (SizeRange(2016, 2016, 1.0),), by_matplotlib=by_matplotlib)
    assert max(image.size) == 2016
    assert len(facts.boxes) > 10


def test_drawing_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module imports, and charts of our own are drawn, where matplotlib is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = importlib.util.spec_from_file_location("pens_alone", chart_pens.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw_chart(np.random.default_rng(1), SIZES, by_matplotlib=0.0)
    with pytest.raises(ImportError):
        draw_chart(np.random.default_rng(1), SIZES, by_matplotlib=1.0)
