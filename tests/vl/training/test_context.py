"""Batches that are shared out: the parts are the batch, and a run over four processes is the run of one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import Inputs, Processor
from text_backbone.parallel import ContextShard
from vl.training.batch import Encoded, join
from vl.training.config import TrainConfig
from vl.training.context import Context, share_batch
from vl.training.losses import balance_loss
from vl.training.parallelize import World
from vl.training.train import Trainer, train

from .conftest import tables
from .conversations import picture, talk, write_jsonl
from .test_parallelize import FIGURES, figures, processes

IMAGE = 0


@pytest.fixture(scope="module")
def images(processor: Processor) -> list[Inputs]:
    content = [{"type": "image", "image": picture(*size)} for size in ((40, 30), (90, 30), (30, 30))]
    return [processor([{"role": "user", "content": [part]}]) for part in content]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(8, 30), st.sets(st.integers(0, 2))), min_size=1, max_size=4), st.integers(2, 4))
def test_the_parts_of_a_batch_are_the_batch(
    images: list[Inputs], shapes: list[tuple[int, set[int]]], ranks: int
) -> None:
    """Of sequences of text with images between, and labels at random."""
    generator = torch.Generator().manual_seed(len(shapes))
    sequences = []
    for length, shown in shapes:
        text = torch.randint(3, 300, (length,), generator=generator)
        seen = [images[i] for i in sorted(shown)]
        ids = torch.cat([text, *(each.input_ids for each in seen)])
        tiles = torch.cat([images[0].tiles[:0], *(each.tiles for each in seen)])
        inputs = replace(images[0], input_ids=ids, tiles=tiles, grids=tuple(g for each in seen for g in each.grids))
        labels = torch.where(torch.rand(len(ids), generator=generator) < 0.3, ids, -100)
        sequences.append(Encoded(inputs, labels, "records"))
    whole = join(sequences, IMAGE)
    whole = replace(whole, tiles=torch.arange(len(whole.tiles)))  # so that each says which it is
    parts = [share_batch(whole, rank, ranks) for rank in range(ranks)]
    rows = [ContextShard.share(whole.lengths, rank, ranks).rows for rank in range(ranks)]
    order = torch.cat(rows).argsort()
    assert torch.equal(torch.cat([part.input_ids for part in parts])[order], whole.input_ids)
    assert torch.equal(torch.cat([part.labels for part in parts])[order], whole.labels)
    scored = torch.cat([own[part.scored] for own, part in zip(rows, parts, strict=True)])
    assert torch.equal(scored.sort().values, whole.scored)
    answers, ids = torch.cat([part.answer_lengths for part in parts]), torch.cat([part.sequences() for part in parts])
    assert torch.equal(answers[scored.argsort()], whole.answer_lengths)
    assert torch.equal(ids[scored.argsort()], whole.sequences())

    numbers = torch.full_like(whole.input_ids, -1)  # of image tokens, in the whole batch
    numbers[whole.image_rows] = torch.arange(len(whole.image_rows))
    first_tiles = list(accumulate((grid.tiles for grid in whole.grids), initial=0))[:-1]
    made = numbers[whole.image_rows].split([grid.tokens for grid in whole.grids]) if whole.grids else ()
    for own, part in zip(rows, parts, strict=True):
        tiles = part.tiles.split([grid.tiles for grid in part.grids]) if part.grids else ()
        shown = [first_tiles.index(int(each[0])) for each in tiles]
        assert [whole.grids[i] for i in shown] == list(part.grids)
        features = torch.cat([numbers[:0], *(made[i] for i in shown)])  # what the part's tiles make
        assert part.features is not None
        assert torch.equal(features[part.features], numbers[own][part.image_rows])
        assert torch.equal(part.image_rows, (numbers[own] >= 0).nonzero().flatten())


def test_too_few_tokens_stay_whole(processor: Processor) -> None:
    batch = join([Encoded(processor([{"role": "user", "content": "a"}]), torch.full((1,), -100), "records")], IMAGE)
    few = replace(batch, input_ids=batch.input_ids[:7], lengths=(7,))
    context = Context(rank=1, ranks=4)
    assert context.share(few) is few
    assert context.weight(few) == 1 / 4
    values = torch.ones(2)
    assert context.sum(values, few) is values


def test_balance_of_parts_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(50, 4) for _ in range(3)]
    whole, load = balance_loss(layers, 2)
    parts = [[layer[:17] for layer in layers], [layer[17:] for layer in layers]]
    counts = [balance_loss(part, 2, tokens=1)[1] * 2 for part in parts]
    losses = [balance_loss(part, 2, 50, lambda own: sum(counts)) for part in parts]  # type: ignore[arg-type,return-value]
    assert sum(float(loss) for loss, _ in losses) == pytest.approx(float(whole))
    for _, found in losses:
        torch.testing.assert_close(found, load)


def recorded(tmp_path: Path, **run: Any) -> dict[str, Any]:
    """A run on records: most of text alone, and pictures here and there."""
    (tmp_path / "a.png").write_bytes(picture(90, 30))
    said = [{"messages": [{"role": "user", "content": "Hi " * n}, {"role": "assistant", "content": "Hello " * n}]}
            for n in (1, 2, 40)]  # fmt: skip
    path = write_jsonl(tmp_path / "talks.jsonl", [talk("a.png"), *said, talk("a.png", "A long box. " * 9)] * 3)
    values = tables(**run)
    watched = shutil.copy(path, tmp_path / "held-out.jsonl")
    return values | {"data": {"files": [str(path)], "held_out": [str(watched)], "batch_tokens": 300, "workers": 0}}


def test_four_processes_that_share_batches_in_pairs_learn_as_one(tmp_path: Path) -> None:
    values = recorded(tmp_path, steps=3)
    (tmp_path / "cut.png").write_bytes(picture(90, 30)[:60])  # whose size can be read
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write(json.dumps(talk("cut.png")) + "\n")
    values["optimizer"]["reduction"] = "square"
    shared = values | {"parallel": {"context": 2}, "run": values["run"] | {"recompute": True}}
    processes(4, shared, tmp_path / "four")
    alone = values | {"run": values["run"] | {"accumulate": 2}}
    train(TrainConfig.of(alone), tmp_path / "one", device="cpu")
    for figure in FIGURES:
        assert figures(tmp_path / "four", figure) == pytest.approx(figures(tmp_path / "one", figure), rel=1e-4), figure
    for figure in ("records_loss", "records_accuracy", "records_exact"):
        ours, theirs = (figures(tmp_path / name, figure, "eval") for name in ("four", "one"))
        assert ours == pytest.approx(theirs, rel=1e-4), figure
    ours, theirs = ((tmp_path / name / "skipped.jsonl").read_text() for name in ("four", "one"))
    assert ours == theirs != ""
    trained = [vl.load(tmp_path / name / "model", device="cpu", dtype="float32") for name in ("one", "four")]
    want, got = (model.released_tensors() for model in trained)
    for name, slot in want.items():
        if "k_proj.bias" not in name:  # which has no effect, and no gradient but rounding errors
            torch.testing.assert_close(got[name].read(), slot.read(), rtol=2**-6, atol=2e-5)


def test_a_batch_without_pictures_teaches_the_vit_nothing(tmp_path: Path) -> None:
    """Gradients still go through the decoder, as other processes wait there."""
    values = recorded(tmp_path, steps=2, train=["vision"])
    hello = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    values["data"] = {"files": [str(write_jsonl(tmp_path / "text.jsonl", [hello] * 4))], "workers": 0}
    train(TrainConfig.of(values), tmp_path / "run", device="cpu")
    assert figures(tmp_path / "run", "grad_norm") == [0.0, 0.0]


def test_what_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"parallel": {"context": 2}}
    with pytest.raises(vl.ConfigError, match=r"parallel\.context = 0 must be at least 1"):
        TrainConfig.of(tables() | {"parallel": {"context": 0}})
    with pytest.raises(vl.ConfigError, match="over 2 processes, and 1 cannot be divided"):
        Trainer(TrainConfig.of(tables() | shared), tmp_path / "a", "cpu")
    monkeypatch.setattr(World, "join", lambda device, parallel: World(0, 2, parallel.context))
    with pytest.raises(vl.ConfigError, match="teach the ViT by their patches"):
        Trainer(TrainConfig.of(tables() | shared), tmp_path / "b", "cpu")


def test_groups_have_batches_of_their_own() -> None:
    worlds = [World(rank, 6, 2) for rank in range(6)]
    assert [(world.groups, world.group) for world in worlds] == [(3, 0), (3, 0), (3, 1), (3, 1), (3, 2), (3, 2)]
