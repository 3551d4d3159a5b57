"""A model whose weights are held by ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from preprocessing import Inputs, Processor
from text_backbone import MiniMaxText
from vl.config import VLConfig
from vl.engine import EngineConfig
from vl.engine.identity import digest
from vl.engine.prompt import Prompt
from vl.errors import ConfigError
from vl.model import MiniMaxVL
from vl.ranks.engine import SplitEngine
from vl.ranks.identity import joined
from vl.ranks.processes import Ranks


class SplitVL(MiniMaxVL):
    """A `MiniMaxVL` over several devices: it answers as one does; what needs the weights in this process is refused.

    Its own parameters are shapes, on the meta device.

    Args:
        ranks: the processes that hold it.
        engine: the config that they were started with. The other arguments are those of `MiniMaxVL`.
    """

    def __init__(
        self,
        config: VLConfig,
        processor: Processor,
        ranks: Ranks,
        *,
        name: str,
        dtype: torch.dtype,
        engine: EngineConfig,
    ) -> None:
        super().__init__(config, processor, name=name, device="meta", dtype=dtype)
        self._ranks, self._dtype = ranks, dtype
        self.engine = SplitEngine(self, ranks, engine)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """One for each rank."""
        return self._ranks.devices

    @property
    def device(self) -> torch.device:
        """The first rank's."""
        return self._ranks.devices[0]

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def logits(self, inputs: Inputs) -> Tensor:
        """As of `MiniMaxVL`, on the host."""
        self.engine.stay_in_process()
        return self._ranks.call("logits", Prompt.of(inputs, self.config, self.name))[0]

    def last_experts(self, texts: Sequence[Sequence[int]]) -> list[int] | None:
        """As of `vl.routing`."""
        self.engine.stay_in_process()
        return self._ranks.call("last_experts", texts)[0]

    def weights_digest(self) -> str:
        """As of `MiniMaxVL`; each rank reads the values that it has."""
        found = self._ranks.call("samples")
        return digest(joined(part, [values[name] for values in found]) for name, part in self._modules.items() if part)

    def memory(self) -> list[int]:
        """Bytes of tensors on each device at the peak, on GPUs."""
        return self._ranks.call("memory")

    def close(self) -> None:
        self._ranks.close()

    # What needs the weights in this process

    @property
    def language_model(self) -> MiniMaxText:  # type: ignore[override]
        raise self._elsewhere("its decoder cannot be used, adapted or trained in this one")

    def embed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self._elsewhere("embed cannot be called here")

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self._elsewhere("forward cannot be called here: use logits or generate")

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self._elsewhere("it cannot be saved: `vl convert` writes quantised checkpoints of any size")

    def train(self, mode: bool = True) -> SplitVL:
        if mode:
            raise self._elsewhere("it cannot be trained")
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> NoReturn:
        """What `to`, `half` and their like call."""
        raise self._elsewhere("it cannot be moved or cast: give vl.load the devices and the dtype")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise self._elsewhere("it cannot be copied or pickled: load it again")

    def _elsewhere(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.name or 'this model'} is split over {len(self._ranks)} processes, and {what}. Without devices= "
            "vl.load makes a model in this process"
        )
