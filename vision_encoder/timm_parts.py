"""What the encoder uses of timm, imported without torch's compiler.

Importing any module of timm imports all its models, and through two names those import `torch._dynamo`, which takes
longer than all the rest: torchvision's roi_align asks `torch._dynamo.utils` for a function, and timm decorates one with
`torch.compiler.disable`. Neither uses what it gets before it is called, so here both get it at the first call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_UTILS = "torch._dynamo.utils"


@contextmanager
def late_compiler() -> Iterator[None]:
    """Imports in this block do not import `torch._dynamo`, unless they use it at once: then they get it as always.

    Nothing is left of this afterwards, but in the modules imported here two names whose functions import it when they
    are called.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable, stand_in = torch.compiler.disable, _stand_in()
    sys.modules[_UTILS] = stand_in
    torch.compiler.disable = _late_disable
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(_UTILS) is stand_in:
            del sys.modules[_UTILS]


def _late_disable(fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """`torch.compiler.disable` as torch's own modules use it: it imports the compiler when `fn` is called."""
    return torch._disable_dynamo(fn, recursive)


def _stand_in() -> ModuleType:
    """A module with the function that torchvision takes; whatever else it is asked for comes from the real one."""
    module = ModuleType(_UTILS)

    def real() -> ModuleType:
        if sys.modules.get(_UTILS) is module:
            del sys.modules[_UTILS]
        return import_module(_UTILS)

    def is_compile_supported(device: Any) -> Any:
        return real().is_compile_supported(device)

    def of_real(name: str) -> Any:
        if name.startswith("__"):  # the import system looks for `__path__` and the like
            raise AttributeError(name)
        return getattr(real(), name)

    vars(module).update(is_compile_supported=is_compile_supported, __getattr__=of_real)
    return module


with late_compiler():
    from timm.layers.activations import QuickGELU
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

__all__ = ["PatchEmbed", "QuickGELU", "VisionTransformer"]
