"""How much memory loading takes beside the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

# Tensors of 8 MiB; peak anonymous memory (file pages are the kernel's to drop) above what the model itself takes.
MEMORY = """
import sys, threading, time, torch
from pathlib import Path
from typing import Any
from safetensors.torch import load_file
from text_backbone import Slot
from vl.checkpoint import load_weights
from vl.manifest import read_manifest

def anonymous():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024

torch.set_num_threads(1)
folder, dtype = sys.argv[1], getattr(torch, sys.argv[3])
tensors = {f"t{i}": torch.ones(2 << 20, dtype=dtype) for i in range(10)}
slots = {name: Slot.of(tensor) for name, tensor in tensors.items()}
peak = start = anonymous()
running = True

def sample(*_):
    global peak
    peak = max(peak, anonymous())

def watch():
    while running:
        sample()
        time.sleep(0.0003)

watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[2] == "ours":
    manifest = read_manifest(folder, ((name, slot.shape) for name, slot in slots.items()))
    load_weights(slots, manifest, progress=sample)
else:
    whole = {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    for name, tensor in whole.items():
        tensors[name].copy_(tensor)
        sample()
running = False
watcher.join()
assert all((tensor == 2).all() for tensor in tensors.values())
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of anonymous memory")
@pytest.mark.parametrize(("how", "dtype"), [("ours", "bfloat16"), ("whole", "float32")])
def test_peak_memory_is_the_model_and_two_tensors(tmp_path: Path, how: str, dtype: str) -> None:
    size = 8.0  # MiB of one tensor in the file
    save_file({f"t{i}": torch.full((2 << 20,), 2.0) for i in range(10)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEMORY, str(tmp_path), how, dtype]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    extra = float(done.stdout)
    assert (extra < 2 * size) is (how == "ours"), f"{extra:.1f} MiB above the model"
