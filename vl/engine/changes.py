"""Whether modules are still what they were, as far as that shows without reading their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from types import MethodType

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_OWN = frozenset(vars(nn.Module())) - {"training"}  # PyTorch's, of every module
_PLAIN = frozenset((bool, int, float, str))


class Change(IntEnum):
    """What has become of modules: nothing; other numbers in the same places; or other places, modules or settings."""

    NONE = 0
    WRITTEN = 1
    REBUILT = 2


class Changes:
    """Tells what has become of modules since it was asked last, or made.

    What shows is where each tensor is and how often it was written to, and of each submodule its class, hooks and
    settings (attributes that are numbers, texts or collections of those, such as whether an adapter is on): whether
    they were trained, loaded, moved, cast, hooked or adapted. Modules whose methods are hooks, as adapters' are, count
    too. Not seen is what goes past PyTorch's counting: writes to a tensor's `.data` or to NumPy's view of it, to
    tensors that were made in inference mode, and to what a hook that is a mere function knows.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules
        self._storages: list[StorageWeakRef] = []
        self._form, self._writes = list[object](), list[int]()
        self.look()

    def look(self) -> Change:
        """What has happened. It takes about as long as to go through all submodules."""
        form, writes, tensors = _walk(self._modules)
        before, self._form = self._form, form
        written, self._writes = self._writes != writes, writes
        # Where memory was given back another tensor may lie by now, at the same address.
        if form == before and not any(storage.expired() for storage in self._storages):
            return Change.WRITTEN if written else Change.NONE
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return Change.REBUILT


def _walk(modules: Iterable[nn.Module]) -> tuple[list[object], list[int], list[Tensor]]:
    """What modules are, how often their tensors were written to, and the tensors."""
    form, writes, tensors = list[object](), list[int](), list[Tensor]()
    for part in _parts(modules):
        attributes = vars(part)
        form += type(part), attributes.get("forward"), *attributes["_forward_hooks"], *attributes["_forward_pre_hooks"]
        settings = [value for name, value in attributes.items() if name not in _OWN]
        form += [value if type(value) in _PLAIN else _setting(value) for value in settings]
        for held in (attributes["_parameters"], attributes["_buffers"]):
            tensors += [tensor for tensor in held.values() if tensor is not None] if held else ()
    for tensor in tensors:
        form += tensor.data_ptr(), tensor.dtype
        writes.append(0 if tensor.is_inference() else tensor._version)
    return form, writes, tensors


def _parts(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """They, their submodules, and those whose methods hook them: each once."""
    found, left = set[int](), list(modules)
    while left:
        part = left.pop()
        if id(part) in found:
            continue
        found.add(id(part))
        yield part
        attributes = vars(part)
        if attributes["_modules"]:
            left += [child for child in attributes["_modules"].values() if child is not None]
        if attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]:
            hooks = (*attributes["_forward_hooks"].values(), *attributes["_forward_pre_hooks"].values())
            owners = [hook.__self__ if isinstance(hook, MethodType) else hook for hook in hooks]
            left += [owner for owner in owners if isinstance(owner, nn.Module)]


def _setting(value: object) -> object:
    """A copy that can be compared later; None of what is no setting."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_setting(entry) for entry in value]
    if isinstance(value, Mapping):
        return [(_setting(key), _setting(entry)) for key, entry in value.items()]
    return None
