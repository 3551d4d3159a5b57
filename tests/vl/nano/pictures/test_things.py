"""Pictures of things are whole, named as the folder's files are, and never of the other part."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vl
from vl.nano import prepare_things
from vl.nano.kinds import KINDS
from vl.nano.mix import SMALL, Mix
from vl.nano.pictures import cutouts, things
from vl.nano.pictures.cutouts import held_out_pictures, path_of, pictures_of, thing_list
from vl.nano.pictures.photographs import Photographs
from vl.nano.pictures.things import ThingFacts, ask_things, caption_things, draw_things
from vl.nano.prepare_things import prepare
from vl.nano.render import render

from .cutout_folder import colour_of, make_cutouts

PLACES = {thing: index for index, thing in enumerate(thing_list())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


def test_the_list_has_each_thing_once_with_four_hands_or_more() -> None:
    assert len({thing.name for thing in thing_list()}) == len(thing_list()) == 209
    for thing in thing_list():
        assert len({cutouts._hand(picture) for picture in thing.pictures}) >= 4, thing.name
        assert len(set(thing.pictures)) == len(thing.pictures)
        assert not thing.phrase.startswith("a ") or thing.name[0] not in "aeio", thing.phrase
    shared = Counter(picture for thing in thing_list() for picture in thing.pictures)
    assert max(shared.values()) == 1, "no picture shows two things"


def test_a_third_is_held_out_and_no_hand_is_on_both_sides() -> None:
    total = held = 0
    for thing in thing_list():
        kept, learnt = pictures_of(thing, "held-out"), pictures_of(thing, "learnt")
        assert sorted((*kept, *learnt)) == sorted(thing.pictures) == sorted(pictures_of(thing, "all"))
        assert kept
        assert len(learnt) >= 2, thing.name
        assert not {cutouts._hand(one) for one in kept} & {cutouts._hand(one) for one in learnt}
        total, held = total + len(thing.pictures), held + len(kept)
    assert 0.28 < held / total < 0.4
    hands = {cutouts._hand(one) for thing in thing_list() for one in held_out_pictures(thing)}
    assert hands >= cutouts._ONE_HAND, "each hand is held out for some things"


def test_what_is_added_leaves_every_other_picture_where_it_was() -> None:
    total = held = 0
    for thing in thing_list():
        settled = thing.pictures[: len(thing.pictures) - thing.added]
        before = held_out_pictures(thing._replace(pictures=settled, added=0))
        after = held_out_pictures(thing)
        assert before == after & set(settled), thing.name
        total, held = total + thing.added, held + len(after - before)
    assert total > 900
    assert 0.25 < held / total < 0.4


@pytest.mark.parametrize("part", ["learnt", "held-out"])
def test_pictures_show_what_is_named(folder: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(things, "_TURNED", 0.0)
    alone = 0
    for seed in range(120):
        image, facts = draw_things(
            np.random.default_rng(seed), SMALL, folder, grounds=0.3, photographs=Photographs(part=part)
        )
        assert image.size == (facts.width, facts.height)
        assert 1 <= len(facts.items) <= 3
        assert len({item.thing for item in facts.items}) == len(facts.items)
        alone += len(facts.items) == 1
        for item in facts.items:
            assert item.source in pictures_of(item.thing, part)
            left, top, right, bottom = item.ink
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height
            if item.source.split(":")[0] not in cutouts.WHOLE:
                seen = np.array(image.getpixel((round((left + right) / 2), round((top + bottom) / 2))), int)
                assert np.abs(seen - colour_of(PLACES[item.thing])).max() < 12, item
    assert 70 < alone < 110


def test_a_photograph_is_shown_whole(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cat = next(thing for thing in thing_list() if thing.name == "cat")
    monkeypatch.setattr(things, "find_cutouts", lambda *_: {cat: ("photos:chelsea",)})
    image, facts = draw_things(np.random.default_rng(0), SMALL, folder)
    assert len(image.getcolors(1 << 20) or ()) == 1
    assert caption_things(facts) == "A cat."


def test_captions_and_answers_follow_from_the_facts(folder: str) -> None:
    answers: dict[str, set[str]] = {}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, facts = draw_things(rng, SMALL, folder)
        caption = caption_things(facts)
        for item in facts.items:
            assert item.thing.name.lower() in caption.lower()
            assert (item.position in caption) == (len(facts.items) > 1)
        asked = ask_things(rng, facts)
        names = [item.thing.name for item in facts.items]
        if asked.answer in ("yes", "no"):
            said = [item.thing.phrase for item in facts.items if f" {item.thing.phrase}" in asked.prompt]
            answers.setdefault(asked.answer, set()).add(asked.prompt)
            assert (asked.answer == "yes") == bool(said), (asked, names)
        else:
            assert asked.answer in (*names, *(item.position for item in facts.items))
    assert min(map(len, answers.values())) > 10


def test_without_pictures_it_says_where_they_come_from(tmp_path: Path) -> None:
    mix = Mix().only("things")
    with pytest.raises(vl.ConfigError, match=r"data\.mix\.cutouts.*prepare_things"):
        render(1, 1, mix)
    with pytest.raises(vl.ConfigError, match="has no pictures of things"):
        render(1, 1, Mix(things=1.0, scenes=0, words=0, cutouts=str(tmp_path)))


def test_a_recipe_draws_them_with_their_questions(folder: str) -> None:
    mix = Mix(things=1.0, scenes=0, words=0, cutouts=folder, questions=0.6, turns=4, damaged=0.2, sizes=SMALL)
    samples = [render(3, index, mix) for index in range(40)]
    assert {sample.kind for sample in samples} == {"things"}
    assert len({sample.prompt for sample in samples}) > 10
    assert any(sample.answer == KINDS["things"].caption(sample.facts) for sample in samples)
    assert all(isinstance(sample.facts, ThingFacts) for sample in samples)


def test_the_folder_is_made_from_collections(tmp_path: Path) -> None:
    """A stamp's ink is cut out and scaled down, its transparency is kept, and what is not there is counted."""
    stamp = next(one for thing in thing_list() for one in thing.pictures if one.startswith("stamps:"))
    source = tmp_path / "stamps" / f"{stamp.split(':', 1)[1]}.png"
    source.parent.mkdir(parents=True)
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (100, 50, 300, 150))
    image.save(source)
    counts = prepare(tmp_path / "out", stamps=tmp_path / "stamps")
    assert counts["stamps"] == 1
    assert counts["clipart missing"] > 100
    with Image.open(tmp_path / "out" / path_of(stamp)) as small:
        assert small.size == (112, 56)
        assert np.abs(np.array(small.convert("RGB").getpixel((50, 30)), int) - (200, 30, 30)).max() < 12


def test_icons_without_colours_get_some_and_gcompris_resources_are_opened(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    square = {"body": '<path fill="currentColor" d="M0 0h24v24H0z"/>', "width": 24, "height": 24}
    icons = tmp_path / "icons" / "mdi" / "icons.json"
    icons.parent.mkdir(parents=True)
    icons.write_text(json.dumps({"icons": {"cat": square, "dog": square}}))
    (tmp_path / "gcompris").mkdir()
    photo = io.BytesIO()
    Image.new("RGB", (300, 200), (20, 200, 90)).save(photo, "WEBP", lossless=True)
    (tmp_path / "gcompris" / "erase.rcc").write_bytes(b"")
    found = {"gcompris/src/activities/erase/resource/kitten.webp": photo.getvalue()}
    prepare_things._resources.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_things, "read_resources", lambda path: found.items())
        counts = prepare(tmp_path / "out", icons=tmp_path / "icons", gcompris=tmp_path / "gcompris")
    prepare_things._resources.cache_clear()
    assert (counts["mdi"], counts["gcompris-photos"]) == (2, 1)
    colours = set()
    for name in ("cat", "dog"):
        with Image.open(tmp_path / "out" / "mdi" / f"{name}.webp") as icon:
            colours.add(icon.convert("RGB").getpixel((50, 50)))
    assert len(colours) == 2
    assert (0, 0, 0) not in colours
    with Image.open(tmp_path / "out" / "gcompris-photos" / "erase" / "kitten.webp") as small:
        assert small.mode == "RGB"
        assert small.size == (256, 171)


def test_names_are_printed_and_pictures_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vl.nano.prepare_things", "--names"], capture_output=True, text=True, check=True
    )
    assert "- animal: ant, bat, bear" in done.stdout
    *kinds, counted = done.stdout.splitlines()
    assert sum(len(line.split(", ")) for line in kinds) == 209
    assert counted == "209 things with 2771 pictures, of which 974 are held out"


def shown(*names: str) -> ThingFacts:
    by_name = {thing.name: thing for thing in thing_list()}
    places = ("on the left", "in the center", "on the right")
    items = [
        things.Shown(by_name[name], "made:up", place, (0, 0, 9, 9)) for name, place in zip(names, places, strict=False)
    ]
    return ThingFacts(300, 100, tuple(items))


@pytest.mark.parametrize(
    ("there", "never"),
    [
        ("taxi", {"car", "police car", "wheel", "door"}),
        ("table tennis bat", {"bat"}),
        ("penguin", {"bird"}),
        ("computer", {"keyboard", "mouse", "television"}),
        ("rose", {"flower", "leaf", "tulip"}),
        ("hamburger", {"bread", "cheese"}),
        ("panda", {"bear", "teddy bear"}),
    ],
)
def test_what_is_said_to_be_absent_is_there_by_no_name(there: str, never: set[str]) -> None:
    rng = np.random.default_rng(3)
    asked = [ask_things(rng, shown(there), "learnt", kinds=("presence",)) for _ in range(1500)]
    denied = " ".join(one.prompt for one in asked if one.answer == "no")
    assert sum(f" {thing.phrase}" in denied for thing in thing_list()) > 80, "others are asked for"
    for name in never:
        assert f" {name} " not in denied.replace("?", " ").replace(".", " ").replace(":", " "), name


def test_names_that_others_include_are_names_of_the_list() -> None:
    names = {thing.name for thing in thing_list()}
    assert {name for group in things._ALIKE for name in group} <= names
    assert {name for part, wholes in things._INCLUDES.items() for name in (part, *wholes)} <= names


def test_a_place_or_a_kind_is_asked_for_where_one_thing_alone_is_meant() -> None:
    rng = np.random.default_rng(4)
    places = {ask_things(rng, shown("car", "taxi", "cat"), kinds=("place",)).prompt for _ in range(60)}
    assert all("the cat" in prompt for prompt in places)
    with pytest.raises(ValueError, match="admits no"):
        ask_things(rng, shown("tomato", "apple"), kinds=("kind_named",))
    assert ask_things(rng, shown("cat", "apple"), kinds=("kind_named",)).answer in ("cat", "apple")
