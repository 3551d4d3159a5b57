"""`vl.load`: the release's files, files that are wrong, and arguments that are."""

from __future__ import annotations

import json
import resource
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vl
from vl.errors import CheckpointError, ConfigError, DeviceError

PICTURE = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit(folder: Path, name: str, change: Any) -> None:
    contents = json.loads((folder / name).read_text())
    change(contents)
    (folder / name).write_text(json.dumps(contents))


def test_the_fixture_is_in_the_form_of_the_release(tiny_checkpoint: Path) -> None:
    names = {path.name for path in tiny_checkpoint.iterdir() if path.suffix != ".safetensors"}
    fixed = {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == fixed | {"model.safetensors.index.json"}
    assert json.loads((tiny_checkpoint / "preprocessor_config.json").read_text())["size"] == [336, 336]
    assert len(list(tiny_checkpoint.glob("model-*-of-*.safetensors"))) > 1
    model = vl.load(tiny_checkpoint, device="cpu")
    assert model.end_ids == {1}
    assert isinstance(model.chat(MESSAGES, max_new_tokens=3), str)


def test_what_is_saved_is_the_same_model_in_the_released_form(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = vl.load(tiny_checkpoint, device="cpu")
    again = vl.load(model.save(tmp_path), device="cpu")
    assert again.config == model.config
    inputs = model.processor(MESSAGES)
    assert torch.equal(again.logits(again.processor(MESSAGES)), model.logits(inputs))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == [336, 336]


def test_mean_and_pinpoints_of_processor_config_reach_the_model(folder: Path, tiny_checkpoint: Path) -> None:
    edit(folder, "config.json", lambda config: config.pop("image_grid_pinpoints"))
    images = json.loads((folder / "preprocessor_config.json").read_text())
    images |= {"image_mean": [0.5, 0.5, 0.5], "image_grid_pinpoints": [[336, 672]]}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": images, "patch_size": 56}))
    model, usual = vl.load(folder, device="cpu"), vl.load(tiny_checkpoint, device="cpu")
    assert model.processor.patcher is not None
    assert model.processor.patcher.resolution(50, 40) == (336, 672)
    inputs = usual.processor(MESSAGES)
    assert not torch.allclose(model.logits(inputs), usual.logits(inputs), atol=1e-3)


def test_files_that_begin_with_a_byte_order_mark(folder: Path, tiny_checkpoint: Path) -> None:
    """As some editors save them."""
    expected = vl.load(tiny_checkpoint, device="cpu")
    for path in folder.glob("*.json"):
        if path.name != "tokenizer.json":  # which the library reads
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    model = vl.load(folder, device="cpu")
    assert torch.equal(model.logits(model.processor(MESSAGES)), expected.logits(expected.processor(MESSAGES)))


def test_a_tokenizer_in_two_files(folder: Path, tmp_path: Path) -> None:
    before = vl.load(folder, device="cpu")
    contents = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = contents["model"]["vocab"]
    special = {token["content"]: vocabulary.pop(token["content"], token["id"]) for token in contents["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "added_tokens.json").write_text(json.dumps(special))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<image>"]}))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in contents["model"]["merges"]))
    (folder / "tokenizer.json").unlink()
    model = vl.load(folder, device="cpu")
    expected = before.processor(MESSAGES).input_ids
    assert torch.equal(model.processor(MESSAGES).input_ids, expected)
    model.save(folder)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "vocab.json").exists()
    assert torch.equal(vl.load(folder, device="cpu").processor(MESSAGES).input_ids, expected)


@pytest.mark.parametrize("contents", [None, b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"a": 1}', b"[" * 10**5])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "model-00001-of-00004.safetensors",
    ],
)
def test_a_damaged_file_is_an_error_or_changes_nothing(folder: Path, name: str, contents: bytes | None) -> None:
    path = folder / name
    present = path.exists()
    path.unlink(missing_ok=True)
    path.mkdir() if contents is None else path.write_bytes(contents)
    try:
        vl.load(folder, device="cpu")
    except vl.Error as error:
        message = str(error)
    else:
        # An object without a key that is looked for, or a folder where a file may be missing.
        message = ""
        assert not present or contents == b'{"a": 1}'
    assert not message or name in message


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("vision_config", "num_hidden_layers"), 10**9),
        (("vision_config", "hidden_size"), 2**31 - 2),
        (("vision_config", "intermediate_size"), 2**31 - 1),
        (("text_config", "num_local_experts"), 10**9),
        (("text_config", "hidden_size"), 2**30),
        (("text_config", "vocab_size"), 2**31 - 1),
        (("text_config", "intermediate_size"), 10**9),
        (("text_config", "num_hidden_layers"), 10**9),
        (("text_config", "hidden_size"), 10**12),
    ],
)
def test_a_config_is_held_to_the_files_before_memory_is_asked_for(
    folder: Path, keys: tuple[str, str], value: int
) -> None:
    edit(folder, "config.json", lambda config: config[keys[0]].update({keys[1]: value}))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ConfigError, CheckpointError)):
        vl.load(folder, device="cpu")
    assert time.process_time() - start < 30  # to count them all takes hours
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("vl.loading.MiniMaxVL", full)
    with pytest.raises(DeviceError, match=r"cpu has no room for .*free memory"):
        vl.load(folder, device="cpu")
    monkeypatch.setattr("vl.loading.MiniMaxVL", lambda *args, **kwargs: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # a fault of ours, not of the machine
        vl.load(folder, device="cpu")


def test_tokens_beyond_the_vocabulary(folder: Path) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append(
            tokenizer["added_tokens"][0] | {"content": "<far>", "id": len(tokenizer["model"]["vocab"]) + 5}
        )

    edit(folder, "tokenizer.json", add)
    with pytest.raises(ConfigError, match=r"vocab_size is \d+ .* the tokenizer has the id \d+"):
        vl.load(folder, device="cpu")


def test_an_image_token_of_another_tokenizer(folder: Path) -> None:
    edit(folder, "config.json", lambda config: config.update(image_token_index=7))
    with pytest.raises(ConfigError, match=r"image_token_index is 7 .* gives <image> the id 2"):
        vl.load(folder, device="cpu")


@pytest.mark.parametrize("place", ["config.json", "text_config"])
@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "a scheme of tomorrow"])
def test_a_checkpoint_quantised_by_others_is_refused_by_name(folder: Path, place: str, method: str) -> None:
    def quantised(config: dict[str, Any]) -> None:
        (config if place == "config.json" else config[place])["quantization_config"] = {"quant_method": method}

    edit(folder, "config.json", quantised)
    with pytest.raises(ConfigError, match=rf"quantization_config.*{method}"):
        vl.load(folder, device="cpu")


SOURCES = [
    None,
    5,
    b"nano",
    ["nano"],
    "a\0b",
    "n" * 5000,
    "x/" * 3000,
    "~no-such-user/model",
    "\ud800",
    "no/such/folder",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_none(source: Any) -> None:
    with pytest.raises(CheckpointError):
        vl.load(source, device="cpu")


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        vl.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "cud"}, DeviceError),
        ({"device": "cuda:99"}, DeviceError),
        ({"device": "cpu:256"}, DeviceError),  # which torch takes for cpu:0
        ({"device": 5.5}, DeviceError),
        ({"device": ["cpu"]}, DeviceError),
        ({"device": "meta:x"}, DeviceError),
        ({"device": "meta"}, DeviceError),
        ({"dtype": 5}, DeviceError),
        ({"dtype": "float8"}, DeviceError),
        ({"dtype": torch.int8}, DeviceError),
        ({"dtype": [torch.float32]}, DeviceError),
        ({"quantization": "x"}, ConfigError),
        ({"quantization": 4}, ConfigError),
        ({"progress": 5}, ConfigError),
        ({"max_batch": 5}, ConfigError),
        ({"max_batch_size": "5"}, ConfigError),
        ({"background": "no colour"}, vl.Error),
        ({"background": 5}, vl.Error),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options)) if error is ConfigError else None):
        vl.load("nano", **options)


def test_a_large_model_on_the_cpu_is_warned_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("vl.loading._LARGE", 1000)
    with pytest.warns(UserWarning, match="no GPU was found"):
        vl.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vl.load(folder, device="cpu")
