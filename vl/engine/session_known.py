"""What a session has read at one time, all of it together."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from preprocessing import Conversation
from vl.engine.driver import Holding
from vl.engine.prefix import Held
from vl.engine.session_file import SavedImage


@dataclass(frozen=True, eq=False)
class Known:
    """A session has another one as soon as it has read more. What is held is let go when nobody has it any more.

    So a save that is under way has to the end what it began with.

    Attributes:
        engine: whose cache holds it.
        read: the messages, without images, and the tools.
        ids: int64 [total], tokens of the messages, of which `held` has the first.
        images: those of the messages.
        held: the keys, values and states.
    """

    engine: Holding
    read: Conversation
    ids: Tensor
    images: Sequence[SavedImage]
    held: Held

    def __post_init__(self) -> None:
        weakref.finalize(self, self.engine.let_go, self.held).atexit = False
