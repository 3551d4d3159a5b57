"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from preprocessing import ChatTemplate, Patcher, Processor, Tokenizer
from vl.errors import ConfigError
from vl.model import MiniMaxVL
from vl.training.compile import compile_blocks
from vl.training.config import TrainConfig
from vl.training.data import Batch, batches, held_out
from vl.training.dense import PatchHead
from vl.training.init import initialise
from vl.training.losses import load_spread
from vl.training.optim import MasterAdamW, learning_rate
from vl.training.report import Report, draw_curve
from vl.training.state import Progress, load_state, save_state
from vl.training.step import StepLosses, losses, score
from vl.training.tokenizer import IMAGE_ID, train_tokenizer

MODEL = "model"
_SHARD_BYTES = 16_000_000


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    stop_after: float | None = None,
) -> Path:
    """Trains a model from scratch and writes it under `out`.

    `out` gets `model/` (the released layout in bfloat16, for `vl.load`), `checkpoints/`, `log.jsonl` and `loss.png`.

    Args:
        config: the model and the recipe.
        resume: continue from the newest checkpoint in `out`; by the same steps as if there had been no break.
        device: the first GPU where there is one, else the CPU.
        stop_after: minutes after which this part of the run saves a checkpoint and ends, to be resumed later.

    Returns:
        The folder of the model.

    Raises:
        CheckpointError: if there is nothing to resume, or it is of another model.
        ConfigError: if the config cannot be trained.
    """
    return Trainer(config, Path(out), device, resume).run(stop_after)


class Trainer:
    """A run in memory: model, optimizer, progress and report."""

    def __init__(
        self, config: TrainConfig, out: Path, device: torch.device | str | None = None, resume: bool = False
    ) -> None:
        self.config, self.out = config, out
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if config.run.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"run.dtype {config.run.dtype!r} must be 'bfloat16' or 'float32'")
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.data.seed)
        self.processor = build_processor(config)
        self.model = MiniMaxVL(config.model, self.processor, device=self.device, dtype=torch.float32)
        initialise(self.model, config.data.seed)
        self.head = PatchHead(config.vision.hidden_size, device=self.device)
        learnt = torch.nn.ModuleDict({"model": self.model, "head": self.head})
        self.optimizer = MasterAdamW(learnt, config.optimizer)
        learnt.to(getattr(torch, config.run.dtype))
        self.progress = Progress()
        out.mkdir(parents=True, exist_ok=True)
        if resume:
            self.progress, tensors = load_state(out)
            self.optimizer.load(tensors)
        self.report = Report(out, resume_step=self.progress.step)
        if config.run.compile:
            compile_blocks(self.model)
        self.image_token = IMAGE_ID
        self.held_out = {
            kind: held_out(config.data, self.processor, self.image_token, kind, config.run.eval_samples)
            for kind in config.data.mix.kinds
        }

    # The schedule

    @property
    def finished(self) -> bool:
        return self.fraction(self.progress.step) >= 1

    def fraction(self, step: int) -> float:
        """How much of the run is over at `step`: by steps, or by the time so far where that is ahead."""
        minutes = self.config.run.minutes
        by_time = self.progress.seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, max(step / self.config.run.steps, by_time))

    def keys(self) -> Iterator[tuple[int, int]]:
        """(step, stage) of every step from here on, decided when the data loader asks."""
        for step in range(self.progress.step, self.config.run.steps):
            yield step, self.config.data.stage(self.fraction(step))

    # The loop

    def run(self, stop_after: float | None = None) -> Path:
        """Trains to the end or for `stop_after` minutes; either way the state and the model are saved."""
        pin = self.device.type == "cuda"
        data = batches(self.config.data, self.processor, self.image_token, self.keys(), pin=pin)
        begun, before = time.perf_counter(), self.progress.seconds
        saved = evaluated = before
        window = Window()
        while not self.finished and (stop_after is None or self.progress.seconds - before < 60 * stop_after):
            waiting = time.perf_counter()
            batch = next(data)
            window.wait += time.perf_counter() - waiting
            window.add(batch, *self.step(batch.to(self.device)))
            self.progress.step += 1
            self.progress.samples += len(batch.lengths)
            self.progress.tokens += len(batch.input_ids)
            self.progress.seconds = before + time.perf_counter() - begun
            if self.progress.step % self.config.run.log_steps == 0:
                self.report.write("train", self.progress.step, **window.summary(), lr=self.lr(), **self._totals())
                window = Window()
            if self.progress.seconds - evaluated >= 60 * self.config.run.eval_minutes:
                self.evaluate()
                evaluated = self.progress.seconds
            if self.progress.seconds - saved >= 60 * self.config.run.save_minutes:
                self.save()
                saved = self.progress.seconds
            self.progress.seconds = before + time.perf_counter() - begun
        if self.progress.seconds > evaluated:
            self.evaluate()
        self.save()
        draw_curve(self.out)
        return self.out / MODEL

    def lr(self) -> float:
        return learning_rate(self.progress.step, self.fraction(self.progress.step), self.config.optimizer)

    def step(self, batch: Batch) -> tuple[StepLosses, Tensor]:
        """One update. Returns the losses and the gradient norm, still on the device."""
        recipe = self.config.optimizer
        result = losses(
            self.model,
            self.head,
            batch,
            balance=recipe.balance,
            dense=recipe.dense,
            max_tiles=self.config.run.max_tiles,
        )
        result.total.backward()
        return result, self.optimizer.step(self.lr())

    def evaluate(self) -> dict[str, float]:
        """Held-out loss, token accuracy and exact-match rate by kind of picture; also logged."""
        figures = {
            f"{kind}_{name}": value
            for kind, packed in self.held_out.items()
            for name, value in score(self.model, packed, max_tiles=self.config.run.max_tiles).items()
        }
        self.report.write("eval", self.progress.step, **figures)
        return figures

    def save(self) -> None:
        """Writes a checkpoint and, in the released layout, the model as it is now."""
        save_state(self.out, self.progress, self.optimizer.state())
        model = MiniMaxVL(self.config.model, self.processor, device="cpu", dtype=torch.bfloat16)
        with torch.no_grad():
            # The model's masters come first; those of the head are not saved.
            for target, source in zip(model.parameters(), self.optimizer.masters, strict=False):
                target.copy_(source)
        model.save(self.out / MODEL, max_shard_bytes=_SHARD_BYTES)

    def _totals(self) -> dict[str, float]:
        return {"samples": self.progress.samples, "minutes": round(self.progress.seconds / 60, 2)}


class Window:
    """Sums between two log lines; losses stay on the device until they are printed."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.wait = 0.0
        self.steps = self.samples = self.tokens = 0
        self.sums: Tensor | None = None
        self.load: Tensor | None = None

    def add(self, batch: Batch, result: StepLosses, norm: Tensor) -> None:
        values = torch.stack((result.tokens.detach(), result.balance.detach(), result.dense.detach(), norm.float()))
        self.sums = values if self.sums is None else self.sums + values
        self.load = result.load
        self.steps += 1
        self.samples += len(batch.lengths)
        self.tokens += len(batch.input_ids)

    def summary(self) -> dict[str, float]:
        """Means per step, and rates; waits for the device."""
        assert self.sums is not None
        assert self.load is not None
        loss, balance, dense, norm = (self.sums / self.steps).tolist()
        least, most = load_spread(self.load)
        elapsed = time.perf_counter() - self.start
        return {
            "loss": loss,
            "balance": balance,
            "dense": dense,
            "expert_min": least,
            "expert_max": most,
            "grad_norm": norm,
            "samples_per_s": self.samples / elapsed,
            "tokens_per_s": self.tokens / elapsed,
            "data_wait": self.wait / elapsed,
        }


def build_processor(config: TrainConfig) -> Processor:
    """The processor of a new model: its own tokenizer, the default chat template, the config's resolutions."""
    # One thread to an image: the data loader's workers already take every CPU.
    patcher = Patcher(config.pinpoints, tile=config.vision.image_size, patch=config.vision.patch_size, threads=1)
    return Processor(Tokenizer(train_tokenizer(config.text.vocab_size)), ChatTemplate(None), patcher)
