"""Memory of the host where states are kept, place by place; page-locked beside a GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, Thread

import torch
from torch import Tensor


class Places:
    """Numbered places, each made when it is first used: of each layer a tensor, or what was made ahead of its use.

    To lock 280 MiB takes the host longer than reading a question takes the GPU. So once a place is used, a thread makes
    the next ones.

    Args:
        layers: of how many layers the states of a place are. `shape`: float32, of one of them.
        device: that copies to the places and from them.
    """

    def __init__(self, layers: int, shape: Sequence[int], device: torch.device) -> None:
        self._layers, self._shape, self._device = layers, tuple(shape), device
        self._made: dict[int, Sequence[Tensor]] = {}
        self._spare: list[Sequence[Tensor]] = []
        self._ahead = self._most = 0
        self._lock = Lock()
        self._thread: Thread | None = None

    def make_ahead(self, ahead: int, most: int) -> None:
        """From now on have `ahead` places ready, as long as no more than `most` are made. Does not wait for them."""
        self._ahead, self._most = ahead, most
        self._refill()

    def wait(self) -> None:
        """Until those that are to be ready are."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def __getitem__(self, number: int) -> Sequence[Tensor]:
        """Of each layer float32 `shape`, on the host."""
        if number not in self._made:
            with self._lock:
                spare = self._spare.pop() if self._spare else None
            self._made[number] = self.new() if spare is None else spare
            self._refill()
        return self._made[number]

    def keep(self, numbers: Collection[int]) -> None:
        """Let go of what is at other places, and have none ready: memory is short."""
        with self._lock:
            self._ahead = 0
            self._spare.clear()
            self._made = {number: made for number, made in self._made.items() if number in numbers}

    def new(self) -> list[Tensor]:
        """Layer by layer: PyTorch rounds page-locked memory up to a power of two, which a layer's states mostly are."""
        if self._device.type == "cuda":
            try:
                return [self._empty(pin=True) for _ in range(self._layers)]
            except RuntimeError:
                pass  # no more can be locked: copies are slower then
        return [self._empty(pin=False) for _ in range(self._layers)]

    def _empty(self, pin: bool) -> Tensor:
        return torch.empty(self._shape, dtype=torch.float32, device="cpu", pin_memory=pin)

    def _lacks(self) -> bool:
        return len(self._spare) < min(self._ahead, self._most - len(self._made))

    def _refill(self) -> None:
        with self._lock:
            if self._thread is None and self._lacks():
                self._thread = Thread(target=self._make, name="vl-places")
                self._thread.start()

    def _make(self) -> None:
        with self._on_device():
            while True:
                with self._lock:
                    if not self._lacks():
                        self._thread = None
                        return
                try:
                    made = self.new()
                except (RuntimeError, MemoryError):  # told to whoever needs one, and then there may be room again
                    with self._lock:
                        self._thread, self._ahead = None, 0
                    return
                with self._lock:
                    self._spare.append(made)

    def _on_device(self) -> AbstractContextManager[object]:
        """A new thread would lock memory for the first GPU, on which this process may have nothing else."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
