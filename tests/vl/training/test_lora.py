from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vl
from vl.training import load_adapter, train
from vl.training.config import ADAPTABLE, LoRAConfig, TrainConfig
from vl.training.curve import read_log
from vl.training.lora import CONFIG, WEIGHTS, Adapters, adaptable, new_adapters
from vl.training.state import load_state
from vl.training.train import Trainer

from .conftest import tables


@pytest.fixture
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu", dtype="float32")


def trained(model: vl.MiniMaxVL, **options: Any) -> Adapters:
    """Adapters as they might be after training: B is not 0."""
    adapters = new_adapters(model, LoRAConfig(**{"rank": 4, "alpha": 6.0, **options}), seed=1)
    generator = torch.Generator().manual_seed(2)
    for tensor in adapters.tensors().values():
        tensor.normal_(std=0.3, generator=generator)
    return adapters


def answer(model: vl.MiniMaxVL) -> torch.Tensor:
    picture = torch.arange(40 * 50 * 3).view(40, 50, 3).to(torch.uint8).numpy()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    return model.logits(model.processor([{"role": "user", "content": content}]))


def test_new_adapters_change_nothing_and_sit_on_every_target(model: vl.MiniMaxVL) -> None:
    before = answer(model)
    adapters = new_adapters(model, LoRAConfig(rank=4), seed=0)
    assert torch.equal(answer(model), before)
    # 7 lightning layers of 3 matrices, 1 softmax layer of 4, the projector's 2; none of the ViT's.
    assert len(adapters.names) == 7 * 3 + 4 + 2
    assert {name.rpartition(".")[2] for name in adapters.names} == set(ADAPTABLE)
    released = model.released_tensors()
    assert all(f"{name}.weight" in released for name in adapters.names)
    assert len(new_adapters(model, LoRAConfig(targets=("qkv_proj", "linear_2")), seed=0).names) == 8
    most = model.config.text.hidden_size
    with pytest.raises(vl.ConfigError, match=rf"lora\.rank = 100000 is more than .* set it to {most} or less"):
        new_adapters(model, LoRAConfig(rank=10**5), seed=0)


def test_merging_answers_what_the_adapters_answer(model: vl.MiniMaxVL) -> None:
    before = answer(model)
    adapters = trained(model)
    apart = answer(model)
    assert not torch.allclose(apart, before, atol=1e-2)
    adapters.merge()
    torch.testing.assert_close(answer(model), apart, rtol=1e-4, atol=1e-4)


def test_saved_adapters_load_apart_or_merged(model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapters = trained(model)
    expected = answer(model)
    adapters.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}
    (tmp_path / "any").touch()  # whoever may read that may read adapters
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "any").stat().st_mode}
    for merge in (False, True):
        fresh = vl.load(tiny_checkpoint, device="cpu", dtype="float32")
        before = answer(fresh)
        loaded = load_adapter(fresh, tmp_path, merge=merge)
        torch.testing.assert_close(answer(fresh), expected, rtol=1e-4, atol=1e-4)
        if not merge:
            loaded.detach()
            assert torch.equal(answer(fresh), before)


class Tree(nn.Module):
    """A model's adaptable matrices as plain modules under their released names, as PEFT finds them."""

    def __init__(self, model: vl.MiniMaxVL) -> None:
        super().__init__()
        for name, linear in adaptable(model):
            node: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
            copy.weight.data.copy_(linear.weight)
            node.add_module(leaf, copy)


def merged_by_us(source: Path, adapter: Path) -> dict[str, torch.Tensor]:
    fresh = vl.load(source, device="cpu", dtype="float32")
    load_adapter(fresh, adapter)
    return {name: linear.weight.detach() for name, linear in adaptable(fresh)}


def merged_by_peft(model: vl.MiniMaxVL, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    merged = PeftModel.from_pretrained(Tree(model), str(adapter)).merge_and_unload()  # type: ignore[arg-type]
    return {name: merged.get_submodule(name).get_parameter("weight").detach() for name, _ in adaptable(model)}


def test_peft_reads_ours(model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapters = trained(model)
    adapters.save(tmp_path)
    adapters.detach()
    torch.testing.assert_close(merged_by_us(tiny_checkpoint, tmp_path), merged_by_peft(model, tmp_path))


def test_we_read_pefts(model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["qkv_proj", "o_proj", "linear_1"], init_lora_weights=False
    )
    peft.get_peft_model(Tree(model), settings).save_pretrained(str(tmp_path))
    ours, theirs = merged_by_us(tiny_checkpoint, tmp_path), merged_by_peft(model, tmp_path)
    torch.testing.assert_close(ours, theirs)
    changed = [name for name, linear in adaptable(model) if not torch.equal(ours[name], linear.weight)]
    assert len(changed) == 7 + 1 + 1


def test_the_files_are_pefts_layout(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    trained(model).save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    layer = "base_model.model.language_model.model.layers.0.self_attn.qkv_proj"
    assert tensors[f"{layer}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{layer}.lora_B.weight"].shape == (96, 4)
    description = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    assert (description["peft_type"], description["r"], description["lora_alpha"]) == ("LORA", 4, 6.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "asks for use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "asks for rank_pattern"),
        ({"peft_type": "IA3"}, "another kind of adapter"),
        ({"r": 5}, "not of the shape"),
        ({"r": None}, "no adapters that can be read"),
    ],
)
def test_other_adapters_are_refused(model: vl.MiniMaxVL, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    adapters = trained(model)
    adapters.save(tmp_path)
    adapters.detach()
    before = answer(model)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change))
    with pytest.raises(vl.CheckpointError, match=message):
        load_adapter(model, tmp_path)
    assert torch.equal(answer(model), before)


def test_adapters_of_another_model_are_refused(model: vl.MiniMaxVL, tiny_text_checkpoint: Path, tmp_path: Path) -> None:
    trained(model).save(tmp_path)
    text = vl.load(tiny_text_checkpoint, device="cpu")
    with pytest.raises(vl.CheckpointError, match="no attention or projector matrix"):
        load_adapter(text, tmp_path)
    with pytest.raises(vl.CheckpointError, match="no adapters that can be read"):
        load_adapter(text, tmp_path / "none")


def test_training_adapters(tmp_path: Path) -> None:
    """Only adapters learn, a resumed run repeats the losses, and the merged model is base plus adapters."""
    base = train(TrainConfig.of(tables(steps=2)), tmp_path / "base", device="cpu")
    config = TrainConfig.of(tables(steps=4, init=str(base)) | {"lora": {"rank": 2, "alpha": 4.0}})
    merged = train(config, tmp_path / "whole", device="cpu")
    assert all(name.startswith("adapters.") for name in load_state(tmp_path / "whole")[1])
    losses = [record["loss"] for record in read_log(tmp_path / "whole") if record["kind"] == "train"]
    assert len(set(losses)) == 4

    part = Trainer(config, tmp_path / "parts", "cpu").run(stop_after=0.0)
    assert part.name == "adapter", "nothing is merged before the end"
    train(config, tmp_path / "parts", resume=True, device="cpu")
    assert [r["loss"] for r in read_log(tmp_path / "parts") if r["kind"] == "train"] == losses

    expected = vl.load(base, device="cpu", dtype="bfloat16")
    load_adapter(expected, tmp_path / "whole" / "adapter")
    found = vl.load(merged, device="cpu", dtype="bfloat16").released_tensors()
    start = vl.load(base, device="cpu", dtype="bfloat16").released_tensors()
    for name, slot in expected.released_tensors().items():
        assert torch.equal(found[name].read(), slot.read())
        adapted = name.removesuffix(".weight").rpartition(".")[2] in ADAPTABLE and "vision_tower" not in name
        assert adapted or torch.equal(start[name].read(), slot.read())
    assert any(not torch.equal(start[name].read(), found[name].read()) for name in start)
    unmerged = replace(config, lora=LoRAConfig(rank=2, merge=False))
    assert train(unmerged, tmp_path / "apart", device="cpu").name == "adapter"
    assert not (tmp_path / "apart" / "model").exists()


@pytest.mark.parametrize(("dtype", "form"), [("bfloat16", None), ("float32", "int8"), ("bfloat16", "nf4")])
def test_adapters_beside_16_bits_and_quantised_matrices(
    dtype: str, form: str | None, model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = answer(model)
    trained(model).save(tmp_path)
    wanted = answer(model) - before
    other = vl.load(tiny_checkpoint, device="cpu", dtype=dtype, quantization=form)
    plain = answer(other)
    if form is not None:
        with pytest.raises(vl.ConfigError, match=r"quantised matrices.*merge=False"):
            load_adapter(other, tmp_path)
        assert torch.equal(answer(other), plain), "which leaves nothing behind"
    adapters = load_adapter(other, tmp_path, merge=False)
    effect = answer(other) - plain
    assert torch.linalg.norm(effect - wanted) < 0.2 * torch.linalg.norm(wanted)
    adapters.detach()
    assert torch.equal(answer(other), plain)
