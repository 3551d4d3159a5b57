"""Which experts of a layer are on the device, and in which order those that are not get there. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_DECAY = 0.99  # of what was used, at every call: what was chosen 70 calls ago counts half
_RING = 2  # slots that experts pass through one after the other: one is copied while another is multiplied with


@dataclass(frozen=True, slots=True)
class Group:
    """Experts that are multiplied with in one go.

    Attributes:
        slots: expert to its slot.
        fetched: the experts, of these, that have to be copied to their slots first.
        after: the group, by its place among those of the call, whose product has to have ended before they are copied,
            as it uses the same slots; None: they may be copied at once.
    """

    slots: dict[int, int]
    fetched: tuple[int, ...] = ()
    after: int | None = None


class Residents:
    """The slots of one layer.

    Args:
        experts: how many the layer has.
        slots: how many of them are on the device at once.

    Attributes:
        held: the expert in each slot; None at first.
        use: how much each expert was used: its share of the choices of every call, of older calls less.
    """

    def __init__(self, experts: int, slots: int) -> None:
        self.held: list[int | None] = [None] * slots
        self.use = [0.0] * experts

    def groups(self, counts: Sequence[int]) -> list[Group]:
        """Take in a call, and say how to work through it.

        Where all that is chosen fits, it is one group: what is missing takes the places of the least used that nobody
        chose. Otherwise most slots keep what they have, and what is missing passes through the two least used.

        Args:
            counts: how often each expert was chosen.

        Returns:
            groups in which every chosen expert is once. They are to be worked through in this order, and copies made
            in the same order.
        """
        total = sum(counts) or 1
        self.use = [_DECAY * use + count / total for use, count in zip(self.use, counts, strict=True)]
        chosen = {expert for expert, count in enumerate(counts) if count}
        here = {expert: slot for slot, expert in enumerate(self.held) if expert is not None and expert in chosen}
        missing = sorted(chosen - here.keys(), key=lambda expert: self.use[expert])
        free = sorted((slot for slot in range(len(self.held)) if slot not in here.values()), key=self._used)
        if len(missing) <= len(free):
            return [self._fetch(missing, free, here)]
        return self._stream(missing, free, here)

    def forget(self) -> None:
        """What the slots hold is not known: a call broke off before all was copied."""
        self.held = [None] * len(self.held)

    def _stream(self, missing: list[int], free: list[int], here: dict[int, int]) -> list[Group]:
        ring = [*free, *sorted(here.values(), key=self._used)][:_RING]
        groups: list[Group] = []
        last: dict[int, int] = {}  # slot of the ring -> the group that used it last
        leaving = {expert: slot for expert, slot in here.items() if slot in ring}
        if leaving:
            last = dict.fromkeys(leaving.values(), 0)
            groups.append(Group(leaving))
        if staying := {expert: slot for expert, slot in here.items() if slot not in ring}:
            groups.append(Group(staying))
        if settling := free[_RING:]:  # of the missing, the most used stay
            groups.append(self._fetch(missing[-len(settling) :], settling))
            missing = missing[: -len(settling)]
        for i, expert in enumerate(missing):
            slot = ring[i % len(ring)]
            groups.append(self._fetch([expert], [slot], after=last.get(slot)))
            last[slot] = len(groups) - 1
        return groups

    def _fetch(
        self, experts: list[int], slots: list[int], here: dict[int, int] | None = None, after: int | None = None
    ) -> Group:
        fetched = dict(zip(experts, slots, strict=False))
        for expert, slot in fetched.items():
            self.held[slot] = expert
        return Group({**(here or {}), **fetched}, tuple(experts), after)

    def _used(self, slot: int) -> float:
        expert = self.held[slot]
        return -1.0 if expert is None else self.use[expert]
