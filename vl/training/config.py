"""A training run as data: the model's shape and the recipe, read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from preprocessing.patcher import PINPOINTS
from text_backbone import TextConfig
from text_backbone.config import hybrid_layers
from vision_encoder import VisionConfig
from vl.config import VLConfig
from vl.errors import ConfigError
from vl.training.canvas import SizeRange
from vl.training.render import EVALUATION_SEED, SMALL, Mix
from vl.training.tokenizer import BEGIN_ID, END_ID, IMAGE_ID

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from.

    Attributes:
        seed: the renderer's stream; below `EVALUATION_SEED`, from where on pictures are held out.
        mix: what is drawn.
        easy_share: for this first part of the run, pictures have few objects or words, to learn to look at all.
        small_share: for this first part, only canvases that fit one tile are drawn, the cheap ones to learn on.
        batch_tokens: a batch takes samples until it has at least so many tokens.
        workers: processes that render and preprocess; None for one per spare CPU, 0 for none.
    """

    seed: int = 0
    mix: Mix = field(default_factory=Mix)
    easy_share: float = 0.0
    small_share: float = 0.0
    batch_tokens: int = 131072
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < EVALUATION_SEED:
            raise ConfigError(f"data.seed {self.seed} must be in 0..{EVALUATION_SEED - 1}: the rest is for evaluation")

    def stage(self, fraction: float) -> int:
        """The stage after a fraction of the run: 0 small and easy, 1 small, 2 everything."""
        if fraction < min(self.easy_share, self.small_share):
            return 0
        return 1 if fraction < self.small_share else 2

    def mix_of(self, stage: int) -> Mix:
        """What a stage draws from."""
        return (self.mix.within(SMALL).easy(), self.mix.within(SMALL), self.mix)[stage]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine down to `final_lr`.

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


@dataclass(frozen=True)
class RunConfig:
    """How long and how closely watched.

    Attributes:
        steps: the run ends after so many steps, or earlier after `minutes`; whichever is nearer sets the cosine.
        minutes: training time of the whole run, resumed parts added up; None for no limit.
        dtype: of weights and activations on the device; the optimizer's master weights are float32.
        log_steps: steps between two log lines.
        save_minutes: minutes between two checkpoints.
        eval_minutes, eval_samples: held-out loss and exact-match rates, how often and on how many pictures per kind.
        compile: run the ViT's blocks through torch.compile where that works.
        max_tiles: tiles that go through the ViT at a time.
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


@dataclass(frozen=True)
class TrainConfig:
    """Everything that one command needs to train a model."""

    text: TextConfig
    vision: VisionConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """Reads a TOML file with the tables `text`, `vision`, `data` (with `data.mix`), `optimizer` and `run`.

        `text.layers` stands for the released interleaving of so many layers; `data.mix.sizes` is a list of
        `[shortest, longest, share]`.

        Raises:
            ConfigError: naming the file and the table or key that is wrong.
        """
        try:
            tables = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the training config {path}: {error}") from error
        try:
            return cls.of(tables)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> TrainConfig:
        """The same from parsed tables."""
        unknown = set(tables) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown table {', '.join(sorted(unknown))}")
        text = dict(tables.get("text", {}))
        if "layers" in text:
            text["attn_type_list"] = hybrid_layers(text.pop("layers"))
        vision = {"text_hidden_size": text.get("hidden_size", TextConfig.hidden_size)} | tables.get("vision", {})
        data = dict(tables.get("data", {}))
        mix = dict(data.get("mix", {}))
        if "sizes" in mix:
            mix["sizes"] = [SizeRange(*size) for size in mix["sizes"]]
        data["mix"] = _build(Mix, mix, "data.mix")
        return cls(
            text=_build(TextConfig, text, "text"),
            vision=_build(VisionConfig, vision, "vision"),
            data=_build(DataConfig, data, "data"),
            optimizer=_build(OptimizerConfig, tables.get("optimizer", {}), "optimizer"),
            run=_build(RunConfig, tables.get("run", {}), "run"),
        )

    @property
    def pinpoints(self) -> tuple[tuple[int, int], ...]:
        """The released resolutions, in tiles of this model's side."""
        side, released = self.vision.image_size, 336
        return tuple((w // released * side, h // released * side) for w, h in PINPOINTS)

    @property
    def model(self) -> VLConfig:
        """The config that the checkpoint will carry."""
        return VLConfig(
            text=self.text,
            vision=self.vision,
            pinpoints=self.pinpoints,
            image_token_index=IMAGE_ID,
            bos_token_id=BEGIN_ID,
            eos_token_ids=(END_ID,),
        )


def _build(kind: type[T], values: Mapping[str, Any], table: str) -> T:
    unknown = set(values) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(sorted(unknown))} in [{table}]")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
