"""The cache is filled again from the folder of a saved session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from text_backbone import HybridCache
from text_backbone.parallel import Layout
from vl.engine import memory
from vl.engine.holding import put_named_in
from vl.engine.session_file import Saved, read_saved, read_shards
from vl.errors import CheckpointError


@dataclass(frozen=True)
class Stored:
    """What a folder holds, for a cache to be filled from: a `vl.engine.holding.Fill`, which other processes can call.

    Raises CheckpointError if the files are damaged.
    """

    folder: Path
    saved: Saved

    def __call__(self, cache: HybridCache, slot: int, layout: Layout | None = None) -> None:
        with undamaged(self.folder):
            states = read_saved(self.folder, self.saved, self.saved.states)
            stretches = (tensors for _, tensors in read_shards(self.folder, self.saved))
            put_named_in(cache, slot, states, stretches, layout)


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """A block that reads files, of whose contents only the checksums were checked, where they have any."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError) as error:
        if memory.is_exhausted(error):
            raise
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__}: {error}): save the session again, or read anew"
        ) from error
