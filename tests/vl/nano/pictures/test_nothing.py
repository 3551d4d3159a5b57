from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vl
from vl.nano.mix import SMALL, Mix
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.english import belongs
from vl.nano.pictures.nothing import (
    NO_IMAGE,
    NOTHING,
    SORTS,
    VARIED,
    NothingFacts,
    ask_nothing,
    describe_nothing,
    draw_nothing,
    draw_photograph,
)
from vl.nano.pictures.photographs import Photographs
from vl.nano.render import render


def draw(seed: int, sort: str, sizes: tuple[SizeRange, ...] = SMALL) -> Image.Image:
    image, facts = draw_nothing(np.random.default_rng(seed), sizes, sorts=(sort,))
    assert image is not None
    assert facts.sort == sort
    assert image.mode == "RGB"
    assert image.size == (facts.width, facts.height)
    assert not facts.boxes
    return image


@pytest.mark.parametrize("sort", [*SORTS, *VARIED])
def test_the_same_generator_draws_the_same_picture_and_others_differ(sort: str) -> None:
    assert draw(3, sort).tobytes() == draw(3, sort).tobytes()
    assert len({draw(seed, sort).tobytes() for seed in range(10)}) == 10
    large = draw(4, sort, (SizeRange(1500, 1600, 1.0),))
    assert 1500 <= max(large.size) <= 1600


def test_what_is_varied_has_bands_besides() -> None:
    plain, varied = (
        {
            draw_nothing(np.random.default_rng(seed), SMALL, photographs=Photographs(varied=share))[1].sort
            for seed in range(60)
        }
        for share in (0.0, 0.5)
    )
    assert plain == set(SORTS)
    assert varied == {*SORTS, *VARIED}


def test_only_blank_ones_are_of_one_colour() -> None:
    for sort in SORTS:
        spread = [int(np.ptp(np.asarray(draw(seed, sort)))) for seed in range(8)]
        single = [len(draw(seed, sort).getcolors(1 << 20) or ()) == 1 for seed in range(8)]
        assert all(single) if sort == "blank" else max(spread) > 40 and sum(single) <= 1, sort


def test_a_share_has_no_picture_and_the_answer_says_so() -> None:
    mix = Mix(nothing=1.0, scenes=0, words=0, sizes=SMALL, absent=0.4, questions=0.5, turns=4, damaged=0.5)
    samples = [render(5, index, mix) for index in range(80)]
    without = [sample for sample in samples if sample.image is None]
    assert 0.25 < len(without) / len(samples) < 0.55
    for sample in samples:
        content = sample.messages[0]["content"]
        assert [part["type"] for part in content] == (["text"] if sample.image is None else ["image", "text"])
        answers = [sample.answer, *(turn.answer for turn in sample.later)]
        assert set(answers) <= ({NO_IMAGE} if sample.image is None else {NOTHING, "0", "no"})
        assert sample.answer == describe_nothing(sample.facts) or sample.image is not None
    assert {sample.answer for sample in samples} == {NO_IMAGE, NOTHING, "0", "no"}


def test_how_many_of_nothing_is_none_and_yes_is_never_right() -> None:
    facts, rng = NothingFacts(100, 100, "noise"), np.random.default_rng(2)
    asked = [ask_nothing(rng, facts) for _ in range(300)]
    for prompt, answer, metric, *_ in asked:
        assert "{" not in prompt
        if prompt.startswith(("How many", "Count")):
            assert (answer, metric) == ("0", "counting")
        elif prompt.startswith(("Is there", "Does the image show", "Can you see", "Yes or no")):
            assert (answer, metric) == ("no", "vqa")
    counted = Counter(one.answer for one in asked)
    assert min(counted[answer] for answer in ("0", "no", NOTHING)) > 40


def test_photographs_of_a_folder_are_parted_by_their_names(tmp_path: Path) -> None:
    names = [f"photo-{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        Image.new("RGB", (50, 40), (10 * number, 0, 100)).save(tmp_path / name)
    seen = set()
    for seed in range(120):
        image, facts = draw_nothing(
            np.random.default_rng(seed), SMALL, photographs=Photographs(str(tmp_path), "held-out")
        )
        assert image is not None
        if facts.sort == "photo":
            assert image.size == (facts.width, facts.height)
            red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
            if not red == green == blue:  # else it is one of those made grey
                seen.add(names[round(red / blue * 10)])
    assert seen
    assert all(belongs(name, "held-out") for name in seen)
    drawn = [
        draw_photograph(np.random.default_rng(seed), SMALL, Photographs(str(tmp_path), "held-out")) for seed in range(9)
    ]
    assert {facts.sort for _, facts in drawn} == {"photo"}
    with pytest.raises(vl.ConfigError, match=r"data\.mix\.photos names"):
        draw_photograph(np.random.default_rng(0), SMALL, Photographs())
    mix = Mix(nothing=1.0, scenes=0, words=0, photos=str(tmp_path / "none"))
    with pytest.raises(vl.ConfigError, match="holds no pictures"):
        [render(1, index, mix) for index in range(20)]


def test_photographs_of_things_that_have_names_are_not_of_nothing(tmp_path: Path) -> None:
    for name in ("Goldfish.jpg", "chelsea.png", "rocket.jpg", "LadyBird 2.jpg", "gravel.jpg"):
        folder = tmp_path / ("known" if name != "gravel.jpg" else "")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (50, 40), (0, 0, 100) if name == "gravel.jpg" else (100, 0, 0)).save(folder / name)
    for seed in range(20):
        image, _ = draw_photograph(np.random.default_rng(seed), SMALL, Photographs(str(tmp_path)))
        red, _, blue = image.getpixel((0, 0))  # type: ignore[misc]
        assert red <= blue, "the one photograph of nothing that is known, or that one made grey"
    with pytest.raises(vl.ConfigError, match="holds no pictures"):
        draw_photograph(np.random.default_rng(0), SMALL, Photographs(str(tmp_path / "known")))


def test_emoji_may_lie_on_a_picture_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ground of all of them is then as busy as clouds or noise are; without, it has two colours and some noise."""
    try:
        plain, busy = ([render(6, i, Mix(emoji=1, scenes=0, words=0, sizes=SMALL, grounds=share)) for i in range(20)]
                       for share in (0.0, 1.0))  # fmt: skip
    except vl.ConfigError as error:
        pytest.skip(str(error))

    def variety(samples: list[object]) -> float:
        return float(np.median([np.asarray(sample.image).std() for sample in samples]))  # type: ignore[attr-defined]

    assert variety(busy) > variety(plain) + 5
    assert all(item.face == "NotoColorEmoji" for sample in busy for item in sample.facts.items)
