"""What captions in the place of a model of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from typing import Any, ClassVar

from vl.engine import SamplingParams
from vl.jobs.rowfile import Row
from vl.jobs.sources import Source


class Elsewhere(ABC):
    """Engines in other processes, on a cluster, or behind a server: `caption_images` takes it as a model.

    Attributes:
        name: what rows call the model.
        holds_forms: whether engines of this project hold answers to schemas there.
    """

    name: str
    holds_forms: ClassVar[bool] = True

    @abstractmethod
    def settings(self, params: SamplingParams) -> dict[str, Any]:
        """What else decides a caption: `settings_of` it."""

    @abstractmethod
    def rows(self, sources: Iterable[Source], **options: Any) -> Generator[list[Row], None, None]:
        """As `caption_rows`, whose options it takes; in any order."""
