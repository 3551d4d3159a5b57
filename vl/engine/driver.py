"""What drives a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from preprocessing import Inputs
from preprocessing.kept import KeptImages
from vl.engine.holding import Fill
from vl.engine.params import SamplingParams
from vl.engine.prefix import Held
from vl.engine.prompt import Prompt
from vl.engine.reading import Progress
from vl.engine.request import Request
from vl.engine.results import Generation, Timings


class Holding(Protocol):
    """The part of an engine that sessions stand on: `vl.engine.Engine` has it."""

    def prepare(
        self,
        inputs: Prompt,
        params: SamplingParams,
        timings: Timings | None = None,
        *,
        after: Held | None = None,
        hold: bool = False,
    ) -> Request: ...
    def prepare_answers(
        self, inputs: Prompt, params: SamplingParams, timings: Timings | None = None, *, after: Held | None = None
    ) -> list[Request]: ...
    def run(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Generation]: ...
    def stream(self, request: Request, progress: Progress | None = None) -> Iterator[str]: ...
    def stay_in_process(self) -> None: ...
    def let_go(self, held: Held) -> None: ...
    def adopt(self, tokens: int, fill: Fill) -> Held: ...
    def states_of(self, held: Held) -> dict[str, Tensor]: ...
    def stretch_of(self, held: Held, start: int, stop: int) -> dict[str, Tensor]: ...


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
