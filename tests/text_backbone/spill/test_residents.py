"""Which experts are in which slots: whatever is chosen, every product finds its experts, and the most used stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from text_backbone.spill import Residents

Calls = list[list[int]]


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, Calls]:
    experts = draw(st.integers(1, 9))
    counts = st.lists(st.sampled_from([0, 0, 1, 5]), min_size=experts, max_size=experts)
    return experts, draw(st.integers(1, experts)), draw(st.lists(counts, min_size=1, max_size=12))


@given(layers())
def test_every_product_finds_its_experts(layer: tuple[int, int, Calls]) -> None:
    """Copies are made in order, each as early as it may be: no product may find its slot written over."""
    experts, slots, calls = layer
    residents = Residents(experts, slots)
    held: list[int | None] = [None] * slots
    for counts in calls:
        groups = residents.groups(counts)
        seen = [expert for group in groups for expert in group.slots]
        assert sorted(seen) == [expert for expert, count in enumerate(counts) if count]
        copied = 0
        for done, group in enumerate(groups):
            # The products of `done` groups have ended: all copies that need not wait for more may be there already.
            while copied < len(groups) and (groups[copied].after is None or groups[copied].after < done):
                for expert in groups[copied].fetched:
                    held[groups[copied].slots[expert]] = expert
                copied += 1
            assert copied > done, "a group waits for itself"
            for expert, slot in group.slots.items():
                assert held[slot] == expert
        assert held == residents.held


@given(layers())
def test_what_is_on_the_device_is_not_copied(layer: tuple[int, int, Calls]) -> None:
    experts, slots, calls = layer
    residents = Residents(experts, slots)
    for counts in calls:
        before = set(residents.held)
        fetched = [expert for group in residents.groups(counts) for expert in group.fetched]
        assert sorted(fetched) == [expert for expert, count in enumerate(counts) if count and expert not in before]


@given(layers())
def test_the_least_used_make_room(layer: tuple[int, int, Calls]) -> None:
    experts, slots, calls = layer
    residents = Residents(experts, slots)
    for counts in calls:
        before = [expert for expert in residents.held if expert is not None]
        residents.groups(counts)
        if sum(map(bool, counts)) > slots:
            continue
        gone = [residents.use[e] for e in before if e not in residents.held]
        kept = [residents.use[e] for e in before if e in residents.held and not counts[e]]
        assert not gone or not kept or max(gone) <= min(kept)


def test_reading_a_prompt_leaves_the_most_used_in_place() -> None:
    """All of 8 experts pass through 5 slots: the three most used stay where they are."""
    residents = Residents(8, 5)
    for _ in range(3):
        residents.groups([5, 4, 3, 2, 1, 0, 0, 0])
    groups = residents.groups([5, 4, 3, 2, 1, 1, 1, 1])
    assert set(residents.held) > {0, 1, 2}
    assert [set(group.slots) for group in groups] == [{3, 4}, {0, 1, 2}, {5}, {6}, {7}]
    assert [group.after for group in groups] == [None, None, 0, 0, 2]


def test_use_is_forgotten_in_time() -> None:
    """Of one slot for two experts: the share of every call counts, not how many tokens it had."""
    residents = Residents(2, 1)
    residents.groups([1000, 0])
    residents.groups([0, 1])
    residents.groups([0, 1])
    assert residents.use[1] > residents.use[0] > 0.9


def test_nothing_is_known_after_a_call_that_broke_off() -> None:
    residents = Residents(3, 2)
    residents.groups([1, 1, 0])
    residents.forget()
    assert residents.groups([1, 1, 0])[0].fetched
