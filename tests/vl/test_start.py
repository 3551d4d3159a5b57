"""What a fresh process imports to load the model and caption, which is most of the time a short command takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import vl
from vision_encoder.timm_parts import late_compiler

ROOT = Path(vl.__file__).parents[1]
HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "gradio", "pandas", "transformers", "numba")


def in_a_fresh_process(code: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, kernels are compiled")
def test_a_caption_needs_no_compiler(tiny_checkpoint: Path) -> None:
    code = (
        "import sys, numpy, vl\n"
        "model = vl.load(sys.argv[1])\n"
        "model.caption(numpy.zeros((40, 60, 3), 'uint8'), max_new_tokens=2)\n"
        "print(*(name for name in sys.argv[2:] if name in sys.modules))"
    )
    assert in_a_fresh_process(code, tiny_checkpoint, *HEAVY).split() == []


def test_a_command_does_not_look_for_garbage_among_modules(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What imports made is frozen; what the command makes is collected as ever."""
    picture = tmp_path / "one.png"
    Image.new("RGB", (60, 40)).save(picture)
    code = (
        "import gc, sys, weakref\n"
        "from vl.cli.app import run\n"
        "assert run(['caption', sys.argv[2], '--model', sys.argv[1], '--max-new-tokens', '2', '--json']) == 0\n"
        "class Loop: pass\n"
        "loop = Loop(); loop.self = loop; gone = weakref.ref(loop); del loop\n"
        "gc.collect()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000, gone() is None)"
    )
    assert in_a_fresh_process(code, tiny_checkpoint, picture).splitlines()[-1] == "True True True"


def test_the_library_leaves_the_garbage_collector_alone(tiny_checkpoint: Path) -> None:
    code = "import gc, sys, vl; vl.load(sys.argv[1]); print(gc.isenabled(), gc.get_freeze_count())"
    assert in_a_fresh_process(code, tiny_checkpoint) == "True 0\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_failed_import_leaves_the_collector_as_it_was(enabled: bool) -> None:
    code = (
        "import gc\n"
        "from vl.cli.console import importing\n"
        f"gc.enable() if {enabled} else gc.disable()\n"
        "try:\n"
        "    with importing():\n"
        "        import no_module_of_this_name\n"
        "except ImportError:\n"
        "    print(gc.isenabled(), gc.get_freeze_count())"
    )
    assert in_a_fresh_process(code) == f"{enabled} 0\n"


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from vl.cli.app import run\n"
        "assert run(['plan', '--gpus', '2xH200', '--json']) == 0\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    assert in_a_fresh_process(code)


def test_names_of_the_packages_come_on_first_use() -> None:
    code = (
        "import preprocessing, text_backbone, vision_encoder, sys\n"
        "assert 'torch' not in sys.modules\n"
        "for package in (preprocessing, text_backbone, vision_encoder):\n"
        "    for name in package.__all__:\n"
        "        assert name in dir(package) and getattr(package, name) is not None, name\n"
        "    assert not hasattr(package, 'absent')\n"
        "print(text_backbone.TextConfig.__module__)"
    )
    assert in_a_fresh_process(code) == "text_backbone.config\n"


def test_nothing_is_missing_afterwards() -> None:
    """The two functions that asked for the compiler get it when they are called, and torch has its own again."""
    code = (
        "import torch; own = torch.compiler.disable\n"
        "import vision_encoder.model, sys\n"
        "assert torch.compiler.disable is own and 'torch._dynamo' not in sys.modules\n"
        "from torchvision.ops import roi_align\n"
        "from timm.models.naflexvit import NaFlexVit\n"
        "image, box = torch.arange(16.).view(1, 1, 4, 4), torch.tensor([[0., 0., 0., 4., 4.]])\n"
        "expected = roi_align(image, box, 2)\n"
        "import torchvision.ops.roi_align as _; module = sys.modules['torchvision.ops.roi_align']\n"
        "assert module.is_compile_supported('cpu') in (True, False)\n"
        "assert 'torch._dynamo' in sys.modules\n"
        "import torch._dynamo.utils as utils\n"
        "assert sys.modules['torch._dynamo.utils'] is utils\n"
        "assert utils.is_compile_supported.__module__ == utils.__name__\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(expected).shape)"
    )
    assert in_a_fresh_process(code) == "torch.Size([1, 1, 2, 2])\n"


def test_who_needs_the_compiler_at_once_gets_it() -> None:
    code = (
        "from vision_encoder.timm_parts import late_compiler\n"
        "with late_compiler():\n"
        "    from torch._dynamo.utils import counters\n"
        "    import torch\n"
        "    late = torch.compiler.disable(lambda x: x + 1)\n"
        "import torch._dynamo.utils\n"
        "assert counters is torch._dynamo.utils.counters\n"
        "print(late(1))"
    )
    assert in_a_fresh_process(code) == "2\n"


def test_an_import_that_fails_leaves_nothing() -> None:
    disable = torch.compiler.disable
    with pytest.raises(ZeroDivisionError), late_compiler():
        1 / 0  # noqa: B018
    assert torch.compiler.disable is disable
