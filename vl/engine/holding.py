"""What a beginning is made of, on its way out of a cache and into another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from text_backbone import HybridCache
from text_backbone.parallel import Layout
from vl.engine.prefix import Held


class Fill(Protocol):
    """Gives a slot of a cache, whose pages are there, its states, keys and values."""

    def __call__(self, cache: HybridCache, slot: int, layout: Layout | None = None, /) -> None:
        """`layout`: of a cache that is a rank's part of one."""


@dataclass(frozen=True)
class Contents:
    """On the host; a `Fill`.

    Attributes:
        states: of each lightning layer float32 [heads, d, d].
        pages: of each softmax layer keys and values [pages, page_size, kv_heads, d].
    """

    states: Sequence[Tensor]
    pages: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, cache: HybridCache, slot: int, layout: Layout | None = None) -> None:
        """Give it to a slot that has as many pages of a cache of the same layout."""
        cache.restore(slot, self.states)
        for layer, (keys, values) in enumerate(self.pages):
            cache.write_pages(layer, cache.pages_of(slot), keys, values)


def take_out(cache: HybridCache, held: Held) -> Contents:
    """A copy of what is held."""
    states = [states.clone() for states in cache.kept_at(held.place)]
    return Contents(states, [cache.read_pages(layer, held.pages) for layer in range(len(cache.keys))])


# By names, as they are in files


def named_states(cache: HybridCache, held: Held) -> dict[str, Tensor]:
    """layers.N.state float32 [heads, d, d], of each lightning layer N."""
    kept = zip(cache.lightning_layers, cache.kept_at(held.place), strict=True)
    return {f"layers.{number}.state": state.clone() for number, state in kept}


def named_stretch(cache: HybridCache, held: Held, start: int, stop: int) -> dict[str, Tensor]:
    """layers.N.keys and layers.N.values [stop - start, kv_heads, d], of each softmax layer N."""
    size, found = cache.page_size, {}
    pages = held.pages[start // size : -(-stop // size)]
    first = start % size
    for layer, number in enumerate(cache.softmax_layers):
        for name, taken in zip(("keys", "values"), cache.read_pages(layer, pages), strict=True):
            found[f"layers.{number}.{name}"] = taken.flatten(0, 1)[first : first + stop - start]
    return found


def whole_name(name: str, layout: Layout) -> str:
    """Of what a rank calls `name`."""
    return layout.whole_name(f"model.{name}").removeprefix("model.")


def put_named_in(
    cache: HybridCache,
    slot: int,
    states: Mapping[str, Tensor],
    stretches: Iterable[Mapping[str, Tensor]],
    layout: Layout | None = None,
) -> None:
    """Give them to a slot, whatever the size of the pages that they came from.

    Args:
        states: as of `named_states`.
        stretches: as of `named_stretch`, one after the other. Page-locked memory is what they pass through.
        layout: of the cache, if that is a rank's: it takes its part of the whole.
    """

    def part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
        return tensors[name] if layout is None else layout.cut(name, tensors[whole_name(name, layout)])

    cache.restore(slot, [part(states, f"layers.{number}.state") for number in cache.lightning_layers])
    pages, left = list(cache.pages_of(slot)), dict[str, Tensor]()  # rows that do not fill a page yet
    filled = 0
    for stretch in stretches:
        count = 0
        for layer, number in enumerate(cache.softmax_layers):
            rows = []
            for name in (f"layers.{number}.keys", f"layers.{number}.values"):
                whole, left[name] = _whole_pages(part(stretch, name), left.get(name), cache)
                rows.append(whole)
            count = len(rows[0])
            cache.write_pages(layer, pages[filled : filled + count], *rows)
        filled += count
    for layer, number in enumerate(cache.softmax_layers):
        rest = [left[f"layers.{number}.{name}"] for name in ("keys", "values")]
        if len(rest[0]):
            fill = cache.page_size - len(rest[0])
            # Not what was in memory: what is masked is still multiplied by 0.
            last = [torch.cat((rows, rows.new_zeros(fill, *rows.shape[1:])))[None] for rows in rest]
            cache.write_pages(layer, pages[filled:], *last)


def _whole_pages(rows: Tensor, before: Tensor | None, cache: HybridCache) -> tuple[Tensor, Tensor]:
    """As many pages as `before` and `rows` fill, [pages, page_size, kv_heads, d], and the rows that are left."""
    size, head, lead = cache.page_size, rows.shape[1:], 0 if before is None else len(before)
    pages = (lead + len(rows)) // size
    if not pages:
        return rows.new_empty(0, size, *head), rows.clone() if before is None else torch.cat((before, rows))
    whole = torch.empty(pages * size, *head, dtype=rows.dtype, device="cpu", pin_memory=cache.keys.is_cuda)
    used = len(whole) - lead
    if before is not None:
        whole[:lead] = before
    whole[lead:] = rows[:used]
    return whole.view(pages, size, *head), rows[used:].clone()
