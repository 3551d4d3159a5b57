"""What a worker elsewhere is told of a job: which model to load, and how to caption with it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vl.engine import SamplingParams
from vl.errors import CheckpointError
from vl.jobs.captioning import caption_rows, settings_of
from vl.jobs.rowfile import Row
from vl.jobs.sources import Source

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


@dataclass(frozen=True)
class Recipe:
    """A model and how to caption with it, as can be pickled.

    Attributes:
        model: as `vl.load` takes it. Workers on other machines need a path that they see, or a hub id.
        loading: the other arguments of `vl.load`, but for the device.
        quantization: that the model will have, of its files or as loaded.
        options: those of `caption_rows`.
        weights: the `vl.fingerprint` that the model must have wherever it is loaded; None: any.
    """

    model: str
    loading: Mapping[str, Any]
    quantization: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    @classmethod
    def of(cls, model: str | os.PathLike[str], loading: Mapping[str, Any], device: str) -> Recipe:
        """Without options yet. What is left open is settled as on a `device`, so that all workers hold weights alike.

        Raises:
            CheckpointError, ConfigError, DeviceError: as `vl.load`, as far as the model's config tells.
        """
        from vl.fingerprint import fingerprint
        from vl.hub import resolve_source
        from vl.loading import pick_device, weights_as

        how = {"dtype": loading.get("dtype"), "quantization": loading.get("quantization")}
        if how["dtype"] is None and device == "cuda":  # which this machine need not have
            how["dtype"] = "bfloat16"
        dtype, quantization = weights_as(model, device="cpu" if device == "cuda" else pick_device(device), **how)
        settled = {"dtype": str(dtype).removeprefix("torch."), "quantization": loading.get("quantization")}
        weights = fingerprint(resolve_source(model))
        return cls(os.fspath(model), dict(loading) | settled, quantization, weights=weights)

    def settings(self, params: SamplingParams) -> dict[str, Any]:
        """`settings_of` what its model will write."""
        import torch

        dtype = getattr(torch, self.loading["dtype"])
        background = self.loading.get("background")
        how = {"dtype": dtype, "quantization": self.quantization, "weights": self.weights}
        return settings_of(params, background=background, **how)

    def asking(self, options: Mapping[str, Any]) -> Recipe:
        """With options."""
        return replace(self, options=options)

    def load(self, **where: Any) -> MiniMaxVL:
        """The model; `where` is `device` or `devices`. Raises as `vl.load`, and CheckpointError if it is another."""
        import vl

        model = vl.load(self.model, **self.loading, **where)
        if self.weights not in (None, model.fingerprint):
            raise CheckpointError(
                f"{self.model} holds other weights than where and when the job was started: start it again, with the "
                "same checkpoint on all machines"
            )
        return model

    def rows(self, model: MiniMaxVL, sources: Iterable[Source]) -> Generator[list[Row], None, None]:
        """`caption_rows` of `sources` by the model that was loaded."""
        with closing(caption_rows(model, sources, **self.options)) as batches:
            yield from batches
