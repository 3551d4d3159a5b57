"""What an engine drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from text_backbone import MiniMaxText
from vision_encoder import VisionEncoder
from vl.config import VLConfig


class TextStream(Protocol):
    """Incremental detokeniser."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Model(Protocol):
    """A model as the engine sees it. It is asked anew for each step: between two it may be moved, cast or adapted."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> VLConfig: ...
    @property
    def language_model(self) -> MiniMaxText: ...
    @property
    def vision(self) -> VisionEncoder | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text."""

    def spellings(self) -> Sequence[bytes]:
        """What each token adds to a text, by id, as long as the vocabulary; b"" for those that are no text."""

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of ordinary text."""

    def detokeniser(self) -> TextStream:
        """A new decoder for ids that come one by one."""
