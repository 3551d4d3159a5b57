"""A training run as data: the model's shape and the recipe, read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from preprocessing.grid import PINPOINTS
from text_backbone import TextConfig
from text_backbone.config import hybrid_layers
from vision_encoder import VisionConfig
from vl.config import VLConfig
from vl.errors import ConfigError
from vl.plugins import find_folder, find_plugin, list_plugins
from vl.training.checks import above_zero, at_least, build_table, share
from vl.training.dimensions import ParallelConfig
from vl.training.losses import REDUCTIONS
from vl.training.source import DataSource

T = TypeVar("T")

ADAPTABLE = ("qkv_proj", "output_gate", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "linear_1", "linear_2")
PARTS = ("projector", "vision", "text")

# Seeds from here on are for evaluation; training refuses them, so that nothing held out is ever trained on.
EVALUATION_SEED = 1 << 31

SPECIAL_TOKENS = ("<image>", "<beginning_of_sentence>", "<end_of_sentence>")
"""The first entries of a new model's tokenizer."""
IMAGE_ID, BEGIN_ID, END_ID = range(3)


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from: the user's `files`, or what a source makes on the way where there are none.

    Attributes:
        files: JSONL files and WebDataset shards, `*` standing for several; see `vl.training.corpus`.
        held_out: more of them, never trained on, on which the loss is watched.
        max_tokens: longer records are skipped; None for as many as fit a batch.
        source: makes the data where there are no files: a name of the group `vl.sources`, or `module:object`; see
            `vl.training.source.DataSource`.
        mix: what the source is to make; its keys are the source's own.
        seed: of the order of records, and of the source's stream; below `EVALUATION_SEED`.
        easy_share: for this first part of the run, pictures have few objects or words, to learn to look at all.
        small_share: for this first part, only canvases that fit one tile are drawn, the cheap ones to learn on.
        batch_tokens: a batch takes pictures until it has at least so many tokens, or records of at most so many.
        reuse: batches in a row that show the same pictures of a source, each with conversations of its own; drawing
            pictures takes most of a worker's time.
        workers: processes that render and preprocess, as far as memory goes; None for one per spare CPU, 0 for none.
    """

    seed: int = 0
    source: str = "nano"
    mix: Mapping[str, Any] = field(default_factory=dict)
    easy_share: float = 0.0
    small_share: float = 0.0
    batch_tokens: int = 131072
    reuse: int = 1
    workers: int | None = None
    files: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.files, str) or isinstance(self.held_out, str):
            raise ConfigError('data.files and data.held_out are lists: files = ["my.jsonl"]')
        at_least("data", self, batch_tokens=1, reuse=1, max_tokens=1, workers=0)
        if self.reuse > 1 and self.files:
            raise ConfigError(
                f"data.reuse = {self.reuse} is for pictures of a source, and data.files are read: drop it"
            )
        share("data", self, "easy_share", "small_share")
        if not 0 <= self.seed < EVALUATION_SEED:
            raise ConfigError(f"data.seed {self.seed} must be in 0..{EVALUATION_SEED - 1}: the rest is for evaluation")

    @property
    def limit(self) -> int:
        """Tokens that a record may have."""
        return min(self.batch_tokens, self.max_tokens or self.batch_tokens)

    def open_source(self) -> DataSource:
        """The source that `source` names, of what `mix` says. Raises ConfigError if that cannot be made."""
        make = find_plugin("vl.sources", self.source)
        if not callable(make):
            raise ConfigError(f"data.source = {self.source!r} is a {type(make).__name__}, and no function of data.mix")
        source: DataSource = make(self.mix)
        if self.reuse > 1 and not hasattr(source, "ask_again"):
            raise ConfigError(
                f"data.reuse = {self.reuse} wants other conversations about the same pictures, and the source "
                f"{self.source!r} makes none (it has no ask_again): set it to 1"
            )
        return source

    def stage(self, fraction: float) -> int:
        """The stage after a fraction of the run: 0 small and easy, 1 small, 2 everything."""
        if fraction < min(self.easy_share, self.small_share):
            return 0
        return 1 if fraction < self.small_share else 2


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, then a cosine down to `final_lr`, or with `schedule = "wsd"` a constant rate that
    falls in a line to `final_lr` over the last `decay_share` of the run.

    `muon` hands the hidden matrices to Muon (see `vl.training.muon`), whose updates are orthogonalised. It needs whole
    matrices, so one process, and a rate about 2.5 times AdamW's.

    `reduction` says how answers of different lengths share the loss: "token" gives each token the same weight, so that
    long texts rule; "sample" gives each answer the same, however short; "square" is between them.

    `balance` weighs the experts' load-balance loss and `dense` the vision tower's own (see `vl.training.dense`) beside
    the caption loss.
    """

    lr: float = 1.5e-3
    final_lr: float = 3e-5
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    balance: float = 0.01
    dense: float = 1.0
    reduction: str = "token"
    muon: bool = False
    schedule: str = "cosine"
    decay_share: float = 0.2

    def __post_init__(self) -> None:
        above_zero("optimizer", self, "lr", "clip")
        at_least("optimizer", self, final_lr=0, warmup_steps=0, weight_decay=0, balance=0, dense=0)
        share("optimizer", self, "decay_share")
        if self.final_lr > self.lr:
            raise ConfigError(
                f"optimizer.final_lr = {self.final_lr:g} is above lr = {self.lr:g}, from which the rate falls to it: "
                f"set it to {self.lr:g} or less"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas = {self.betas} must be from 0 to below 1")
        if self.schedule not in ("cosine", "wsd"):
            raise ConfigError(f"optimizer.schedule {self.schedule!r} must be 'cosine' or 'wsd'")
        if self.reduction not in REDUCTIONS:
            raise ConfigError(f"optimizer.reduction {self.reduction!r} must be one of {', '.join(REDUCTIONS)}")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: everything else is frozen.

    Attributes:
        rank, alpha: a matrix W acts as `W + alpha / rank * B A`, A [rank, in] and B [out, rank].
        targets: last parts of the released names of the matrices, of the decoder's attention and the projector.
        merge: write, at the end, the model with the adapters added in, beside the adapters themselves.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ADAPTABLE
    merge: bool = True

    def __post_init__(self) -> None:
        at_least("lora", self, rank=1)
        above_zero("lora", self, "alpha")
        if isinstance(self.targets, str) or not self.targets or set(self.targets) - set(ADAPTABLE):
            raise ConfigError(f"lora.targets must be a list of some of {', '.join(ADAPTABLE)}")


@dataclass(frozen=True)
class RunConfig:
    """How long and how closely watched.

    Attributes:
        steps: the run ends after so many steps, or earlier after `minutes`; whichever is nearer sets the cosine.
        minutes: training time of the whole run, resumed parts added up; None for no limit.
        dtype: of weights and activations on the device; the optimizer's master weights are float32.
        log_steps: steps between two log lines.
        save_minutes: minutes between two checkpoints.
        eval_minutes, eval_samples: held-out loss and exact-match rates, how often and on how many pictures per kind, if
            on any.
        compile: run the ViT's blocks through torch.compile where that works.
        max_tiles: tiles that go through the ViT at a time.
        init: start from this checkpoint ("nano", a folder or a hub id) instead of from nothing.
        train: what learns: "projector" (with the newline vector), "vision" (the ViT), "text", or patterns of parameter
            names such as "language_model.layers.*.self_attn.*"; the rest is frozen.
        epochs: end after so many passes over the data's files, if that is before `steps`.
        accumulate: batches to a step.
        recompute: keep only the inputs of layers for the backward pass and compute the rest again.
        peak_tflops: of the device, for the utilisation in the log; None measures a matrix product.
    """

    steps: int = 100_000
    minutes: float | None = None
    dtype: str = "bfloat16"
    log_steps: int = 20
    save_minutes: float = 3.0
    eval_minutes: float = 2.0
    eval_samples: int = 128
    compile: bool = False
    max_tiles: int = 512
    init: str | None = None
    train: tuple[str, ...] = PARTS
    epochs: int | None = None
    accumulate: int = 1
    recompute: bool = False
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"run.dtype {self.dtype!r} must be 'bfloat16' or 'float32'")
        if self.init == "":
            raise ConfigError("run.init is empty: name a checkpoint to start from, or leave it out")
        if isinstance(self.train, str) or not self.train:
            raise ConfigError('run.train is a list of what learns: train = ["projector"]')
        at_least("run", self, steps=1, accumulate=1, epochs=1, log_steps=1, max_tiles=1)
        at_least("run", self, save_minutes=0, eval_minutes=0, eval_samples=0)
        above_zero("run", self, "minutes", "peak_tflops")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that one command needs to train a model.

    `text` and `vision` shape a model from scratch, `text` alone a text-only one; with `run.init` they may be left out,
    and must fit the checkpoint otherwise.
    """

    text: TextConfig | None = None
    vision: VisionConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    lora: LoRAConfig | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.lora and self.run.train != PARTS:
            raise ConfigError("[lora] trains the adapters alone: drop run.train")
        if self.lora and not self.run.init:
            raise ConfigError("[lora] adapts a checkpoint: name it in run.init (or --init)")
        if self.lora and self.parallel.tensor > 1:
            raise ConfigError(
                f"[lora] adapts whole matrices, and parallel.tensor = {self.parallel.tensor} cuts them: set it to 1"
            )
        if self.run.epochs and not self.data.files:
            raise ConfigError(
                "run.epochs counts passes over data.files: name some there (or with --data), or use run.steps"
            )
        for key in ("held_out", "max_tokens"):
            if getattr(self.data, key) and not self.data.files:
                raise ConfigError(
                    f"data.{key} is for records of data.files: name some (or with --data), or leave it out"
                )

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """Reads a TOML file with the tables `text`, `vision`, `data` (with `data.mix`), `optimizer`, `run`, `lora` and
        `parallel`.

        `text.layers` stands for the released interleaving of so many layers; `data.mix` is for the data source. A name
        of `find_recipes()`, such as "align", stands for that file.

        Raises:
            ConfigError: naming the file and the table or key that is wrong.
        """
        return cls.of_file(path, {})

    @classmethod
    def of_file(cls, path: str | Path, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
        """The same with some keys of some tables set from elsewhere: `{"run": {"init": "nano"}}`."""
        recipes = find_recipes()
        path = recipes.get(str(path), Path(path))
        try:
            tables = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:  # not TOML, not UTF-8, or nested without end
            known = f"; recipes by name are {', '.join(sorted(recipes))}" if isinstance(error, OSError) else ""
            raise ConfigError(f"cannot read the training config {path}: {error}{known}") from error
        try:
            _check_tables(tables)
            merged = tables | {name: {**tables.get(name, {}), **values} for name, values in changes.items()}
            if changes.get("data", {}).get("files"):  # which take the place of the recipe's source
                idle = _idle(merged)
                merged |= {
                    name: {key: value for key, value in merged[name].items() if (name, key) not in idle}
                    for name in {name for name, _ in idle}
                }
            return cls.of(merged)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> TrainConfig:
        """The same from parsed tables."""
        unknown = set(tables) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown table {', '.join(sorted(unknown))}")
        _check_tables(tables)
        text = dict(tables.get("text", {}))
        if "layers" in text:
            if "attn_type_list" in text:
                raise ConfigError("text.layers and text.attn_type_list say the same: keep one of them")
            text["attn_type_list"] = hybrid_layers(text.pop("layers"))
        vision = {"text_hidden_size": text.get("hidden_size", TextConfig.hidden_size)} | tables.get("vision", {})
        config = cls(
            text=_shape(TextConfig, text, "text") if "text" in tables else None,
            vision=_shape(VisionConfig, vision, "vision") if "vision" in tables else None,
            data=build_table(DataConfig, tables.get("data", {}), "data"),
            optimizer=build_table(OptimizerConfig, tables.get("optimizer", {}), "optimizer"),
            run=build_table(RunConfig, tables.get("run", {}), "run"),
            lora=build_table(LoRAConfig, tables["lora"], "lora") if "lora" in tables else None,
            parallel=build_table(ParallelConfig, tables.get("parallel", {}), "parallel"),
        )
        if idle := _idle(tables):
            (name, key), why = next(iter(idle.items()))
            raise ConfigError(f"{name}.{key} makes no difference {why}: leave one of the two out")
        if config.data.mix and not config.data.files:
            config.data.open_source()  # so that what is wrong in the mix is said now
        return config

    @property
    def pinpoints(self) -> tuple[tuple[int, int], ...]:
        """The released resolutions, in tiles of the side that a new model has."""
        if self.vision is None:
            return ()
        side, released = self.vision.image_size, 336
        return tuple((w // released * side, h // released * side) for w, h in PINPOINTS)

    @property
    def model(self) -> VLConfig:
        """The config of a model from scratch. Raises ConfigError if the tables do not describe one."""
        if self.text is None:
            raise ConfigError(
                "nothing says what to train: name a checkpoint to start from in run.init (or --init), or describe "
                "a model from scratch in the tables [text] and, if it is to see, [vision]"
            )
        return VLConfig(
            text=self.text,
            vision=self.vision,
            pinpoints=self.pinpoints,
            image_token_index=None if self.vision is None else IMAGE_ID,
            bos_token_id=BEGIN_ID,
            eos_token_ids=(END_ID,),
        )


def find_recipes() -> dict[str, Path]:
    """The recipes that come with the package and its plug-ins, by name."""
    packages = list_plugins("vl.recipes").values()
    folders = (Path(__file__).parent, *map(find_folder, packages))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def _idle(tables: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """What a recipe says and nothing would obey, by table and key, and beside what."""
    found: dict[tuple[str, str], str] = {}
    data, run, optimizer = (tables.get(name, {}) for name in ("data", "run", "optimizer"))
    if data.get("files"):
        of_a_source = [("data", "easy_share"), ("data", "small_share"), ("data", "reuse"), ("optimizer", "dense")]
        of_a_source += [("data", "source"), ("data", "mix")] if run.get("init") else []  # else they make a vocabulary
        found |= dict.fromkeys(of_a_source, "beside data.files, as it is for what a source makes")
    if optimizer.get("schedule", OptimizerConfig.schedule) != "wsd":
        found["optimizer", "decay_share"] = 'without schedule = "wsd"'
    return {(name, key): why for (name, key), why in found.items() if tables.get(name, {}).get(key)}


def _check_tables(tables: Mapping[str, Any]) -> None:
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{name} must be a table with keys of its own: write [{name}] above them, once")


def _shape(kind: type[T], values: Mapping[str, Any], table: str) -> T:
    """A model's shape: all its numbers are above 0, but for the kinds of layers."""
    # First, for the shape divides by some of them.
    above_zero(table, SimpleNamespace(**values), *(k for k, value in values.items() if isinstance(value, int | float)))
    return build_table(kind, values, table)
