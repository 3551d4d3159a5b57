"""What drives a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from preprocessing import Inputs
from preprocessing.kept import KeptImages
from vl.engine.params import SamplingParams
from vl.engine.prefix import Held
from vl.engine.prompt import Prompt
from vl.engine.request import Request
from vl.engine.results import Timings
from vl.engine.session import Holding


class Driver(Holding, Protocol):
    """What generates for a model: `vl.engine.Engine`."""

    kept_images: KeptImages | None

    def check(self, params: SamplingParams, prompt: int = 1) -> None: ...
    def prepare(
        self,
        inputs: Inputs | Prompt,
        params: SamplingParams,
        timings: Timings | None = None,
        *,
        after: Held | None = None,
        hold: bool = False,
    ) -> Request: ...
    def prepare_answers(
        self,
        inputs: Inputs | Prompt,
        params: SamplingParams,
        timings: Timings | None = None,
        *,
        after: Held | None = None,
    ) -> list[Request]: ...
    def warm_up(self, progress: Callable[[int, int], object] | None = None) -> None: ...
    def submit(self, inputs: Inputs, params: SamplingParams, timings: Timings | None = None) -> Request: ...
    def cancel(self, request: Request) -> None: ...
    def step(self) -> None: ...
