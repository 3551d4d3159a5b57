"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from vl.errors import CheckpointError, ConfigError, TrainingError
from vl.loading import first_line, pick_device
from vl.threads import one_thread
from vl.training.batch import Batch
from vl.training.batching import Batching, RecordBatches, read_held_out
from vl.training.build import build_model
from vl.training.compile import compile_blocks
from vl.training.config import TrainConfig
from vl.training.corpus import Corpus
from vl.training.data import BatchSource, DrawnBatches, Key, draw_held_out, load_batches
from vl.training.dense import PatchHead
from vl.training.flops import StepFlops, measure_peak
from vl.training.folder import FolderLock, begin_run, check_folder, has_only_begun
from vl.training.freeze import freeze
from vl.training.lengths import measure_records
from vl.training.lora import new_adapters
from vl.training.losses import answer_weights
from vl.training.meters import Meters
from vl.training.optim import MasterOptimizer, learning_rate
from vl.training.parallelize import World, gathered, join_context, local_device, parallelize, together
from vl.training.recompute import recompute_layers
from vl.training.report import Report
from vl.training.result import whole_weights, write_model
from vl.training.shards import Shards
from vl.training.state import Progress, load_state, save_state
from vl.training.step import Learner, StepLosses, add_losses, score

MODEL, ADAPTER = "model", "adapter"


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    stop_after: float | None = None,
) -> Path:
    """Trains a model, from scratch or from a checkpoint, and writes it under `out`.

    `out` gets `model/` (the released layout in bfloat16, for `vl.load`), `checkpoints/`, `log.jsonl`, `tensorboard/`
    and `loss.png`; with [lora] also `adapter/` (PEFT's layout), and with files of records `skipped.jsonl`. Under
    torchrun, parameters are sharded over its processes, each of which makes this call.

    Args:
        config: the model and the recipe.
        resume: continue from the newest checkpoint in `out`, if there is one, by the steps of a run without a break.
        overwrite: delete the run that `out` holds, which is refused otherwise.
        device: the first GPU where there is one, else the CPU.
        stop_after: minutes after which this part of the run saves a checkpoint and ends, to be resumed later.

    Returns:
        The folder of the model; of the adapters where those are not merged.

    Raises:
        CheckpointError: if there is nothing to resume or start from, it is of another model or recipe, or a file
            cannot be written.
        ConfigError: if the config or its data cannot be trained, or `out` holds another run, one at work, or what no
            run has written there.
        DeviceError: if the device is not available.
        TrainingError: if loss or gradient is not finite, or another process has gone; what was saved before stays.
    """
    precision = torch.get_float32_matmul_precision()  # of the caller's products; a trainer sets its own
    try:
        with together():
            trainer = Trainer(config, Path(out), device, resume, overwrite)
            try:
                folder = trainer.run(stop_after)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{out} cannot be written ({error}): make room, then --resume") from error
    finally:
        torch.set_float32_matmul_precision(precision)
    trainer.world.leave()
    return folder


class Trainer:
    """A run in memory: model, optimizer, progress and report."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: torch.device | str | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.config, self.out = config, out
        self.device = local_device(pick_device(device))
        self.world = World.join(self.device, config.parallel)
        check_folder(out, config, self.world.size, resume=resume, overwrite=overwrite)
        self.lock = FolderLock(out)
        if self.world.first:
            self.lock.take()
        # On CPUs only "medium" is faster, by bfloat16 products; what is bfloat16 already loses little by them.
        on_cpu = self.device.type == "cpu" and config.run.dtype == "bfloat16"
        torch.set_float32_matmul_precision("medium" if on_cpu else "high")
        torch.manual_seed(config.data.seed)
        # A model to shard goes to the devices shard by shard.
        self.model = build_model(config, self.device if self.world.size == 1 else torch.device("cpu"))
        self.learner = self._build_learner()
        self.optimizer = self._build_optimizer()
        self.flops = StepFlops(self.model)
        self.progress = Progress()
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)  # whether a step was not finite
        if resume and not has_only_begun(out):
            self.progress, tensors = load_state(out)
            self._restore(tensors)
        else:
            self.world.barrier()  # all have looked at the folder before the first one writes to it
            if self.world.first:
                begin_run(out, config, self.world.size, self.lock)
        self.report = Report(out, resume_step=self.progress.step, active=self.world.first)
        if config.run.compile:
            with gathered(self.learner):
                compile_blocks(self.model)
        if config.run.recompute:
            recompute_layers(self.model)
        peak = config.run.peak_tflops
        self.peak = 1e12 * peak if peak else measure_peak(self.device, getattr(torch, config.run.dtype))
        self.steps = config.run.steps
        self.source, self.held_out = self._open_data()

    # What is built

    def _build_learner(self) -> Learner:
        config, tower = self.config, self.model.vision
        if config.lora:
            self.model.requires_grad_(False)
            return Learner(self.model, adapters=new_adapters(self.model, config.lora, config.data.seed))
        freeze(self.model, config.run.train)
        if config.data.files or tower is None or not any(p.requires_grad for p in tower.vit.parameters()):
            return Learner(self.model)
        if not (classes := config.data.open_source().classes):
            return Learner(self.model)
        if config.parallel.context > 1:
            raise ConfigError(
                "parallel.context shares out tokens, and pictures of a source teach the ViT by their patches too: "
                'give it files in [data], freeze the ViT (run.train = ["projector", "text"]), or set it to 1'
            )
        return Learner(self.model, PatchHead(tower.config.hidden_size, classes).to(self.model.device))

    def _build_optimizer(self) -> MasterOptimizer:
        """The masters are taken before the weights are rounded to the dtype of the run."""
        parallel, shards = self.config.parallel, Shards()
        if self.world.size > 1:
            if self.config.optimizer.muon:
                raise ConfigError("optimizer.muon needs whole matrices, and several processes have shards: turn it off")
            self.learner.context = join_context(self.model, self.world, self.device, parallel)
            shards = parallelize(self.learner, self.model, self.world, self.device, parallel)
        optimizer = MasterOptimizer(self.learner, self.config.optimizer, shards)
        self.learner.to(getattr(torch, self.config.run.dtype))
        return optimizer

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        try:
            self.optimizer.load(tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.out} is of another model, or of other parts of it ({first_line(error)}): "
                "resume with the recipe that the run began with, or choose another --out"
            ) from error

    def _open_data(self) -> tuple[BatchSource, dict[str, list[Batch]]]:
        """The training batches, and the held-out ones by kind."""
        data, run = self.config.data, self.config.run
        processor, image_token = self.model.processor, self.model.config.image_token_index
        if not data.files:
            drawn = data.open_source()
            if drawn.classes and self.model.config.vision is None:
                raise ConfigError(
                    f"a text-only model cannot learn from the pictures of {data.source!r}: give it files in [data], or "
                    "name a source of text in data.source; a new model sees with a table [vision]"
                )
            kinds = drawn.kinds if run.eval_samples else ()
            held = {kind: draw_held_out(drawn, processor, image_token, kind, run.eval_samples) for kind in kinds}
            return DrawnBatches(data, processor, image_token, drawn), held
        records, lengths = self._measure(data.files, "train")
        plan = Batching(lengths, data.batch_tokens, data.seed)
        if run.epochs:
            each = self._batches_per_step
            self.steps = min(self.steps, math.ceil(plan.end_within(run.epochs, self.steps * each) / each))
        held = {}
        if data.held_out:
            watched, sizes = self._measure(data.held_out, "held-out")
            held["records"] = read_held_out(data, processor, image_token, watched, sizes)
        return RecordBatches(data, processor, image_token, records, plan), held

    # The schedule

    @property
    def _batches_per_step(self) -> int:
        return self.world.groups * self.config.run.accumulate

    @property
    def finished(self) -> bool:
        return self.fraction(self.progress.step) >= 1

    def fraction(self, step: int) -> float:
        """How much of the run is over at `step`: by steps, or by the time so far where that is ahead."""
        minutes = self.config.run.minutes
        by_time = self.progress.seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def keys(self) -> Iterator[Key]:
        """Every batch of this process from here on, with the stage decided when the data loader asks."""
        each = self.config.run.accumulate
        for step in range(self.progress.step, self.steps):
            first = (step * self.world.groups + self.world.group) * each
            for number in range(first, first + each):
                yield number, self.config.data.stage(self.fraction(step))

    # The loop

    def run(self, stop_after: float | None = None) -> Path:
        """Trains to the end or for `stop_after` minutes; either way the state and the model are saved."""
        with self.lock:
            # What the GPU leaves to the host is small, and the data loader's workers have the other CPUs.
            with one_thread() if self.device.type == "cuda" else nullcontext():
                self._train(stop_after)
            return self._finish()

    def _train(self, stop_after: float | None) -> None:
        run, progress = self.config.run, self.progress
        pin, tell = self.device.type == "cuda", self.report.tell
        data = load_batches(self.source, self.keys(), pin=pin, tell=tell, least=self.world.least)
        begun, before = time.perf_counter(), progress.seconds
        saved = evaluated = before
        window = Meters(self.world, self.peak)
        while not self.finished and (stop_after is None or progress.seconds - before < 60 * stop_after):
            waiting = time.perf_counter()
            taken = [next(data) for _ in range(run.accumulate)]
            window.wait += time.perf_counter() - waiting
            losses, norm = self.step(taken)
            self.broken |= ~(losses.total.detach().isfinite() & norm.isfinite())
            window.add(taken, losses, norm, sum(map(self.flops, taken)))
            self._count(taken)
            progress.seconds = before + self.world.slowest(time.perf_counter() - begun)
            if progress.step % run.log_steps == 0 or self.finished:  # short runs are told too
                self._check_finite()
                self.report.write("train", progress.step, **window.summary(), lr=self.lr(), **self._totals())
                window = Meters(self.world, self.peak)
            if progress.seconds - evaluated >= 60 * run.eval_minutes:
                self.evaluate()
                evaluated = progress.seconds
            if progress.seconds - saved >= 60 * run.save_minutes:
                self.save()
                saved = progress.seconds
            progress.seconds = before + self.world.slowest(time.perf_counter() - begun)
        del data  # ends the workers
        if progress.seconds > evaluated:
            self.evaluate()
        self.save()
        self.report.close()

    def lr(self) -> float:
        return learning_rate(self.progress.step, self.fraction(self.progress.step), self.config.optimizer)

    def step(self, taken: list[Batch]) -> tuple[StepLosses, Tensor]:
        """One update from the batches of this process. Returns the losses and gradient norm, still on the device."""
        recipe = self.config.optimizer
        context = self.learner.context
        shares = [context.share(batch) for batch in taken]
        weights = [
            context.weight(share) * float(answer_weights(share.answer_lengths, recipe.reduction).sum())
            for share in shares
        ]
        weight = self.world.sum(sum(weights))
        parts = []
        for batch, own in zip(shares, weights, strict=True):
            part = self.learner(
                batch.to(self.device),
                balance=recipe.balance,
                dense=recipe.dense,
                reduction=recipe.reduction,
                max_tiles=self.config.run.max_tiles,
                # Gradients are averaged over the processes, and so are the shares.
                token_share=self.world.size * own / weight,
                batch_share=1 / len(taken),
            )
            part.total.backward()
            parts.append(part)
        return add_losses(parts), self.optimizer.step(self.lr())

    def evaluate(self) -> dict[str, float]:
        """Held-out loss, token accuracy and exact-match rate by kind of picture; also logged."""
        figures = {
            f"{kind}_{name}": value
            for kind, packed in self.held_out.items()
            for name, value in score(self.learner, packed, self.device, max_tiles=self.config.run.max_tiles).items()
        }
        if figures:
            self.report.write("eval", self.progress.step, **figures)
        return figures

    # What is written

    def save(self) -> None:
        """Writes a checkpoint and, in the released layout, the model as it is now; of adapters these alone.

        Raises:
            TrainingError: if a step since the last one was not finite; nothing is written then.
        """
        self._check_finite()
        state = self.optimizer.state(keep=self.world.first)
        if self.world.first:
            save_state(self.out, self.progress, state)
        self.world.barrier()  # before the weights are gathered, for which nobody waits so long
        adapters = self.learner.adapters
        if adapters is None:
            self._save_model(self.out / MODEL)
        else:
            matrices = self._whole_weights("adapters.")
            if self.world.first:
                adapters.save(self.out / ADAPTER, matrices)
        self.world.barrier()

    def _check_finite(self) -> None:
        if not self.world.sum(float(self.broken)):
            return
        raise TrainingError(
            f"the loss or its gradient was not finite at or before step {self.progress.step}: what was saved before "
            f"stays in {self.out}. Lower optimizer.lr or clip, raise warmup_steps, or look for damaged records"
        )

    def _finish(self) -> Path:
        """Where the result is. Adapters of a run that is over are merged, if the config asks for it."""
        adapters = self.learner.adapters
        if adapters is None:
            return self.out / MODEL
        if not (self.config.lora and self.config.lora.merge and self.finished):
            return self.out / ADAPTER
        self._save_model(self.out / MODEL, self.out / ADAPTER)
        self.world.barrier()
        return self.out / MODEL

    def _whole_weights(self, prefix: str) -> dict[str, Tensor]:
        """Parameters of a part of the learner by their names in it, gathered from all processes for the first."""
        return whole_weights(self.learner, prefix, self.optimizer.shards, keep=self.world.first)

    def _save_model(self, folder: Path, adapter: Path | None = None) -> None:
        """The first process writes the model in the released layout, in bfloat16, adapters added."""
        # A model that trains on several devices has shards, and one with adapters stays as it is.
        apart = self._whole_weights("model.") if self.world.size > 1 or adapter else None
        if self.world.first:
            write_model(self.model, folder, apart, adapter)

    def _count(self, taken: list[Batch]) -> None:
        """One more step, and what was in it over all processes."""
        progress, world = self.progress, self.world
        skipped = [record for batch in taken for record in batch.skipped]
        self.report.skip(skipped if world.tells else ())
        progress.step += 1
        progress.samples += int(world.sum_of_batches(sum(len(batch.lengths) for batch in taken)))
        progress.tokens += int(world.sum_of_batches(sum(len(batch.input_ids) for batch in taken)))
        progress.skipped += int(world.sum_of_batches(len(skipped)))

    def _totals(self) -> dict[str, float]:
        totals = {"samples": self.progress.samples, "minutes": round(self.progress.seconds / 60, 2)}
        if self.config.data.files:
            totals["skipped"] = self.progress.skipped
        return totals

    def _measure(self, files: tuple[str, ...], kind: str) -> tuple[Corpus, np.ndarray]:
        """Records and their lengths; measured by the first process, whose result the others find."""
        records = Corpus(files)
        folder = self.out / "data" / kind
        world = self.world
        if not world.first:
            world.barrier()  # it deletes what an earlier run left, and measures
        folder.mkdir(parents=True, exist_ok=True)
        found = measure_records(records, self.model.processor, self.config.data, folder, self.report.tell)
        if world.first:
            world.barrier()
        if again := records.again:
            self.report.tell(f"{kind}: {len(again)} of the files are matched twice (first {again[0]}), and count once")
        self.report.tell(f"{kind}: {found.summary(folder)}")
        if kind == "train":
            self.progress.skipped = max(self.progress.skipped, len(found.skipped))
        return records, found.lengths
