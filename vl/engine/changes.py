"""Whether a module is still what it was, as far as that shows without reading its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

_OWN = frozenset(vars(nn.Module())) - {"training"}  # PyTorch's, of every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def contents(module: nn.Module) -> list[object]:
    """What is another list after the module was trained, loaded, moved, cast, hooked or adapted.

    That is: where each tensor is and how often it was written to, and of each submodule its class, hooks and settings
    (attributes that are numbers, texts or collections of those, such as whether an adapter is on). Not seen is what
    goes past PyTorch's counting: writes to a tensor's `.data`, or to NumPy's view of it.
    """
    found: list[object] = []
    for part in module.modules():
        attributes = vars(part)
        found.append(type(part))
        found += (tuple(attributes[hooks]) for hooks in _HOOKS if attributes[hooks])
        found += (_setting(value) for name, value in attributes.items() if name not in _OWN)
        for tensors in (attributes["_parameters"], attributes["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    found += tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version
    return found


def _setting(value: object) -> object:
    """A copy that can be compared later; None of what is no setting."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return [(_setting(key), _setting(entry)) for key, entry in value.items()]
    return [_setting(entry) for entry in value] if isinstance(value, list | tuple | set | frozenset) else None
