"""Quantised models: asked for by any name, loaded, saved and loaded again; and what is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vl
from text_backbone.quantization import quantize_backbone, quantize_layer
from text_backbone.quantization.files import is_quantised, packed
from vl.quantization import FORMATS, stored_to_json

PICTURE = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
FORMAT = pytest.mark.parametrize("form", FORMATS)
BNB = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
F32 = torch.float32


def logits(model: vl.MiniMaxVL) -> torch.Tensor:
    return model.logits(model.processor(MESSAGES))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@FORMAT
def test_quantised_while_it_loads(form: str, tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", quantization=form)
    assert model.config.quantization == form
    there = vl.load(tiny_checkpoint, device="cpu")
    quantize_backbone(there.language_model, form)
    assert torch.equal(logits(model), logits(there))
    assert not torch.equal(logits(model), logits(tiny_model))
    assert len(model.generate([MESSAGES], max_new_tokens=4)[0].token_ids) > 0
    assert model.dtype == F32
    assert {
        n for n, s in model.released_tensors().items() if not torch.equal(s.read(), there.released_tensors()[n].read())
    } == set()


@FORMAT
@pytest.mark.parametrize("text_only", [False, True])
def test_saved_and_loaded_again(
    form: str, text_only: bool, tiny_checkpoint: Path, tiny_text_checkpoint: Path, tmp_path: Path
) -> None:
    model = vl.load(tiny_text_checkpoint if text_only else tiny_checkpoint, device="cpu", quantization=form)
    model.save(tmp_path, max_shard_bytes=50_000, dtype="bfloat16")
    again = vl.load(tmp_path, device="cpu")
    assert again.config == model.config
    question: Any = [{"role": "user", "content": "What?"}] if text_only else MESSAGES
    inputs = model.processor(question)
    assert torch.equal(model.logits(inputs), again.logits(inputs))
    assert vl.load(tmp_path, device="cpu", quantization=form).config == model.config
    written = tensors(tmp_path)
    source = tensors(tiny_text_checkpoint if text_only else tiny_checkpoint)
    expected: dict[str, torch.Tensor] = {}
    for name, tensor in source.items():
        if is_quantised(name):
            expected |= {name + suffix: part for suffix, part in packed(tensor, form).items()}
        else:
            expected[name] = tensor
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        if "quant_state" not in name:  # which tells the dtype of the model that was saved
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


def test_what_others_write_in_their_dtype_of_scales(tiny_checkpoint: Path, tmp_path: Path) -> None:
    vl.load(tiny_checkpoint, device="cpu", quantization="fp8").save(tmp_path)
    file = tmp_path / "model.safetensors"
    changed = {n: t.bfloat16() if n.endswith("_scale") else t for n, t in load_file(file).items()}
    save_file(changed, file)
    model = vl.load(tmp_path, device="cpu")
    name = "language_model.model.layers.0.self_attn.out_proj.weight"
    want = changed[name].float() * changed[f"{name}_scale"].float()
    assert torch.equal(model.released_tensors()[name].read(), want)


def bnb_checkpoint(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The model as transformers and bitsandbytes quantise it where only the output head is named to be skipped.

    Returns the values of the released tensors, as bitsandbytes reads them again.
    """
    bnb, transformers = pytest.importorskip("bitsandbytes"), pytest.importorskip("transformers")
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = transformers.BitsAndBytesConfig(**BNB, bnb_4bit_compute_dtype=torch.bfloat16)
    values, tree = tensors(source), torch.nn.Module()
    for name, tensor in values.items():
        *path, last = name.split(".")
        parent = tree
        for part in path[:-1]:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        if not path:
            parent.register_parameter(last, torch.nn.Parameter(tensor))
        elif last == "weight" and tensor.dim() == 2 and "embed" not in path[-1]:
            bias = ".".join([*path, "bias"]) in values
            parent.add_module(path[-1], torch.nn.Linear(*tensor.T.shape, bias=bias))
        elif path[-1] not in parent._modules:
            parent.add_module(path[-1], torch.nn.Module())
    replace_with_bnb_linear(tree, modules_to_not_convert=["lm_head"], quantization_config=config)
    for name, tensor in values.items():
        owner, _, last = name.rpartition(".")
        module = tree.get_submodule(owner)
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        if isinstance(module, bnb.nn.Linear4bit) and last == "weight":
            parameter = bnb.nn.Params4bit(tensor, requires_grad=False, quant_type="nf4", compress_statistics=True)
            parameter = parameter.to("cpu")
            rows = copy.copy(parameter.quant_state)
            rows.shape = torch.Size([tensor.numel() // 64, 64])  # its CPU kernel errs where blocks cross rows
            values[name] = bnb.functional.dequantize_4bit(parameter.data, rows).view(tensor.shape)
        module.register_parameter(last, parameter)
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, folder)
    state = {name: tensor.contiguous() for name, tensor in tree.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": config.to_dict()}, default=str))
    return values


def test_bitsandbytes_files_whose_vision_and_routers_are_quantised_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = bnb_checkpoint(tiny_checkpoint, tmp_path)
    written = {name.removesuffix(".absmax") for name in tensors(tmp_path) if name.endswith(".absmax")}
    kinds = ("block_sparse_moe.gate", "mlp.fc1", "multi_modal_projector.linear_1", "experts.0.w1")
    assert all(any(kind in name for name in written) for kind in kinds)
    model = vl.load(tmp_path, device="cpu", dtype="bfloat16")
    assert model.config.quantization == "nf4"
    for name, slot in model.released_tensors().items():
        torch.testing.assert_close(slot.read(), values[name], rtol=8e-3, atol=1e-6, msg=name)
        assert name in written or torch.equal(slot.read(), values[name])
    assert len(model.generate([MESSAGES], max_new_tokens=4)[0].token_ids) > 0
    model.save(tmp_path / "again")
    again = vl.load(tmp_path / "again", device="cpu", dtype="bfloat16")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_projector_in_eight_bits(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of weights alone it is read in full; FP8 would round activations too, so it is refused by name."""
    vl.load(tiny_checkpoint, device="cpu", quantization=form).save(tmp_path)
    file, name = tmp_path / "model.safetensors", "multi_modal_projector.linear_2.weight"
    whole = load_file(file)
    parts = {name + suffix: part for suffix, part in packed(whole[name], form).items()}
    save_file(whole | parts, file)
    if form == "fp8":
        with pytest.raises(vl.CheckpointError, match=r"linear_2\.weight_scale"):
            vl.load(tmp_path, device="cpu")
        return
    read = vl.load(tmp_path, device="cpu").released_tensors()[name].read()
    assert torch.equal(read, parts[name].float() * parts[f"{name}_scale"])
    save_file(whole | parts | {f"{name}_scale": torch.full_like(parts[f"{name}_scale"], torch.inf)}, file)
    with pytest.raises(vl.CheckpointError, match=r"linear_2\.weight_scale"):
        vl.load(tmp_path, device="cpu")
    save_file(whole | {f"{name}_scale": parts[f"{name}_scale"]}, file)
    with pytest.raises(vl.CheckpointError, match=r"unsupported dtype \(1\): multi_modal_projector\.linear_2\.weight"):
        vl.load(tmp_path, device="cpu")


@pytest.mark.parametrize("form", [*FORMATS, None])
def test_a_quantised_file_that_lacks_or_mixes_parts(form: str | None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vl.load(tiny_checkpoint, device="cpu", quantization=form).save(tmp_path)
    name = "language_model.model.layers.0.self_attn.out_proj.weight"
    whole = load_file(tmp_path / "model.safetensors")
    part = {"nf4": ".absmax", None: ""}.get(form, "_scale")
    for wrong, words in (
        ({n: t for n, t in whole.items() if n != name + part}, "missing tensors"),
        (whole | {name + part: whole[name + part].to(torch.int32)}, "unsupported dtype"),
        (whole | {name + part: whole[name + part].flatten()[:-1].clone()}, "wrong shape"),
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(vl.CheckpointError, match=words) as caught:
            vl.load(tmp_path, device="cpu")
        assert name + part in str(caught.value)


def test_values_that_are_not_finite_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    name = "language_model.model.layers.3.block_sparse_moe.experts.2.w3.weight"
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    held = load_file(file)
    held[name][0, 0] = float("nan")
    save_file(held, file)
    for form in FORMATS:
        with pytest.raises(vl.CheckpointError, match=r"NaN or infinite values \(1\): .*experts\.2\.w3"):
            vl.load(folder, device="cpu", quantization=form)


@pytest.mark.filterwarnings("ignore:.*experts of every layer")
@pytest.mark.parametrize("form", FORMATS)
def test_values_that_the_dtype_cannot_hold_are_named(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    name = "language_model.model.layers.3.block_sparse_moe.experts.2.w3.weight"
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    held = load_file(file)
    held[name][0] = 1e5
    save_file(held, file)
    for source, more in ((folder, {"quantization": form}), (folder, {"quantization": form, "spill": 2})):
        with pytest.raises(vl.CheckpointError, match=r"NaN or infinite values \(1\): .*experts\.2\.w3.*\n.*float32"):
            vl.load(source, device="cpu", dtype="float16", **more)
    vl.load(folder, device="cpu", dtype="bfloat16", quantization=form).save(tmp_path / "stored")
    with pytest.raises(vl.CheckpointError, match=r"NaN or infinite values \(1\): .*layers\.3.*experts\.w13"):
        vl.load(tmp_path / "stored", device="cpu", dtype="float16")


def test_scales_whose_mean_is_too_large_are_no_model(tiny_text_checkpoint: Path) -> None:
    """bitsandbytes takes the mean of NF4's scales, whose sum may be infinite where no value is."""
    slot = vl.load(tiny_text_checkpoint, device="cpu", quantization="nf4").released_tensors()[
        "model.layers.0.self_attn.out_proj.weight"
    ]
    with pytest.raises(ValueError, match="NaN or infinite values"):
        slot.load(torch.full(slot.shape, 3e38))


def test_a_format_cannot_be_changed_into_another(tiny_checkpoint: Path, tmp_path: Path) -> None:
    vl.load(tiny_checkpoint, device="cpu", quantization="nf4").save(tmp_path)
    with pytest.raises(vl.ConfigError, match=r"quantization='int8'.*quantised to nf4 already"):
        vl.load(tmp_path, device="cpu", quantization="int8")


def test_a_model_that_was_quantised_in_place_is_saved_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = vl.load(tiny_checkpoint, device="cpu")
    quantize_backbone(model.language_model, "nf4")
    with pytest.raises(ValueError, match="quantised to nf4 already"):
        quantize_backbone(model.language_model, "int8")
    again = vl.load(model.save(tmp_path / "one"), device="cpu")
    assert again.config.quantization == "nf4"
    assert torch.equal(logits(again), logits(model))
    mixed = vl.load(tiny_checkpoint, device="cpu")
    quantize_layer(mixed.language_model.layers[0], "int8")
    with pytest.raises(vl.ConfigError, match="not saved: its matrices are of several formats: int8, none"):
        mixed.save(tmp_path / "two")
    with pytest.raises(ValueError, match="no format 'int3'"):
        quantize_backbone(mixed.language_model, "int3")


def test_a_size_that_a_format_cannot_hold(tiny_checkpoint: Path) -> None:
    config = vl.load(tiny_checkpoint, device="cpu").config
    text = replace(config.text, intermediate_size=5, hidden_size=27, head_dim=27, rotary_dim=2, num_attention_heads=1)
    odd = replace(config, text=text, vision=None, pinpoints=(), image_token_index=None, quantization="nf4")
    processor = vl.load(tiny_checkpoint, device="cpu").processor
    with pytest.raises(vl.ConfigError, match=r"cannot be quantised to nf4.*odd number"):
        vl.MiniMaxVL(odd, processor, device="cpu")


def test_a_device_without_such_numbers(tiny_model: vl.MiniMaxVL) -> None:
    config = replace(tiny_model.config, quantization="fp8")
    with pytest.raises(vl.DeviceError, match="mps has no 8-bit"):
        vl.MiniMaxVL(config, tiny_model.processor, device="mps")


def test_saved_files_say_how_they_are_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    vl.load(tiny_checkpoint, device="cpu", quantization="nf4").save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == stored_to_json("nf4")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


# Peak anonymous memory (file pages are the kernel's to drop) of loading 50 million values in 16-bit files.
MEMORY = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
import torch, vl, vl.threads
from text_backbone import MiniMaxText, released_tensors
from vl.checkpoint import write_weights
from vl.config import VLConfig, read_config, write_config

def anonymous():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024

vl.threads.MOST = 2  # each holds a few tensors
folder, source = map(Path, sys.argv[1:])
small = vl.load(source, device="cpu")
text = replace(small.config.text, hidden_size=512, intermediate_size=2560)
config = VLConfig(text, eos_token_ids=(1,))
write_config(config, folder)
small.processor.save(folder)
wide = MiniMaxText(text, dtype=torch.bfloat16)
for parameter in wide.parameters():
    torch.nn.init.ones_(parameter)
write_weights(released_tensors(wide), folder, max_shard_bytes=2e7)
del wide
peak = start = anonymous()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.0003)

watcher = threading.Thread(target=watch)
watcher.start()
model = vl.load(folder, device="cpu", quantization="int8")
running = False
watcher.join()
held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) / 2**20
print(held, peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of anonymous memory")
def test_peak_memory_is_the_quantised_model_and_a_few_tensors(tiny_text_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(tiny_text_checkpoint)]
    # What is freed goes back at once, as it does of the released model's larger tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held, peak = map(float, done.stdout.split())
    assert held > 100
    assert peak < held + 75, f"{peak:.0f} MiB for a model of {held:.0f}, which has {2 * held:.0f} in 16 bits"
