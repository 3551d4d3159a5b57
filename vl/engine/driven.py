"""What an engine drives."""

from __future__ import annotations

from typing import Protocol

import torch

from preprocessing import Processor
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
    def processor(self) -> Processor: ...
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

    def detokeniser(self) -> TextStream:
        """A new decoder for ids that come one by one."""
