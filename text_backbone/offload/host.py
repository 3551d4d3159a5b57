"""Pages in host memory, and the buffers on the device that they pass through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from text_backbone.offload.layout import Span, spans

BUFFERS = 2  # one is filled while the other is attended to
BUFFER_TOKENS = 65536  # as many as attention takes at a time (kernels/softmax/cached.py)


def buffer_pages(host_pages: int, page_size: int) -> int:
    """Pages of a buffer, and of a segment of the host's memory."""
    return max(1, min(host_pages, BUFFER_TOKENS // page_size))


class HostPages:
    """Keys and values of every softmax layer's pages in host memory, and two buffers on the device.

    The memory is page-locked where the device is a GPU: copies run beside its work. PyTorch gives such memory out in
    powers of two, so it is taken in segments of a buffer's size, which that mostly is.

    Args:
        page: page_size, kv_heads, d.

    Attributes:
        segments: of each layer [2, rows, kv_heads, d]: keys and values, the rows of `room` pages.
        buffers: [2, 2, room, page_size, kv_heads, d].
        room: pages of a buffer.
    """

    def __init__(
        self, layers: int, pages: int, page: tuple[int, int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.page_size, *head = page
        self.room = buffer_pages(pages, self.page_size)
        segment, pinned = (2, self.room * self.page_size, *head), device.type == "cuda"
        self.segments = [
            [torch.empty(segment, dtype=dtype, device="cpu", pin_memory=pinned) for _ in range(-(-pages // self.room))]
            for _ in range(layers)
        ]
        self.buffers = torch.empty(BUFFERS, 2, self.room, *page, dtype=dtype, device=device)
        if pinned:
            self.buffers.record_stream(copy_stream(device))  # not given out again while a copy is under way

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return sum(segment.nbytes for layer in self.segments for segment in layer)

    def spans_of(self, pages: Sequence[int]) -> list[Span]:
        """For `bring`."""
        size = self.page_size
        return spans(((i * size, page * size, size) for i, page in enumerate(pages)), self.room * size)

    def spans_to(self, rows: Iterator[tuple[int, int, int]]) -> list[Span]:
        """For `write`: (first new token, first row among those of all pages, tokens), none across two pages."""
        return spans(rows, self.room * self.page_size)

    def bring(self, layer: int, where: Sequence[Span], buffer: int) -> None:
        """Copy rows to a buffer, on the current stream."""
        for there, here in zip(self.buffers[buffer], (0, 1), strict=True):
            to = there.flatten(0, 1)
            for span in where:
                held = self.segments[layer][span.segment][here]
                to[span.at : span.at + span.count].copy_(held[span.first : span.first + span.count], non_blocking=True)

    def read(self, layer: int, page: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a page, [page_size, kv_heads, d], copied to the device on the current stream."""
        segment, at = divmod(page, self.room)
        rows = slice(at * self.page_size, (at + 1) * self.page_size)
        keys, values = (
            x[rows].to(self.buffers.device, non_blocking=True, copy=True) for x in self.segments[layer][segment]
        )
        return keys, values

    def write(self, layer: int, where: Sequence[Span], new: tuple[Tensor, Tensor]) -> None:
        """Copy new keys and values, each [T, kv_heads, d], to their pages, on the current stream."""
        for here, values in enumerate(new):
            for span in where:
                held = self.segments[layer][span.segment][here]
                some = values[span.at : span.at + span.count].to(held.dtype)
                held[span.first : span.first + span.count].copy_(some, non_blocking=True)


class Bringing:
    """The copies of one pass: the loads of every layer in turn, each begun when the buffer that it takes is free.

    So while one load is attended to, the next is on its way; and while lightning layers work, the first two of the
    next softmax layer are.
    """

    def __init__(self, host: HostPages, loads: Sequence[Sequence[int]]) -> None:
        self._host, self._loads = host, [host.spans_of(pages) for pages in loads]
        device = host.buffers.device
        self._stream = copy_stream(device) if device.type == "cuda" else None
        self._copied: list[torch.cuda.Event] = []
        self._current = 0
        if self._stream:  # earlier passes have used the buffers, and written what is read now
            self._stream.wait_stream(torch.cuda.current_stream(device))
        for number in range(BUFFERS):
            self._begin(number)
        self._await()

    def bring(self, layer: int, load: int) -> Tensor:
        """Keys and values of a load, [2, room, page_size, kv_heads, d]: the one asked for before, or the next.

        They are to be used before another one is asked for.
        """
        number = layer * len(self._loads) + load
        if number != self._current:
            self._begin(self._current + BUFFERS)
            self._current = number
            self._await()
        return self._host.buffers[number % BUFFERS]

    def _begin(self, number: int) -> None:
        """Copy a load to its buffer, once what has been asked of the device up to now is done with it."""
        if not self._loads:
            return
        layer, load = divmod(number, len(self._loads))
        if layer == len(self._host.segments):
            return
        if self._stream is None:
            self._host.bring(layer, self._loads[load], number % BUFFERS)
            return
        if number >= BUFFERS:
            self._stream.wait_event(torch.cuda.current_stream(self._stream.device).record_event())
        with torch.cuda.stream(self._stream):
            self._host.bring(layer, self._loads[load], number % BUFFERS)
            self._copied.append(self._stream.record_event())

    def _await(self) -> None:
        """What is asked of the device next waits for the current load."""
        if self._stream and self._copied:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied[self._current])


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: the bus is one, too."""
    return torch.cuda.Stream(device)
