"""In Triton's interpreter, every address that a kernel reads or writes is checked against its arguments.

And its language is replaced once in a kernel's run. The interpreter does that anew, by a look at every member of it,
for each call of a function of a kernel, which is a fifth of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def in_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test whose kernel leaves its arguments: a GPU might answer that with an illegal access, or not at all."""
    if torch.cuda.is_available():
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if version("triton").startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Triton 3.6's interpreter needs NumPy below 2.4: pip install 'numpy<2.4', or run on a GPU")
    arguments: list[tuple[int, int]] = []  # first address and the one after the last, per storage
    replaced: set[frozenset[int]] = set()  # parts of the language, in the run that goes on
    execute, replace = interpreter.GridExecutor.__call__, interpreter._patch_lang
    collect = interpreter.GridExecutor._init_args_hst

    def executing(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return execute(self, *args, **kwargs)

    def replacing(function: Any) -> Any:
        language = (interpreter.tl, interpreter.tl.core)
        parts = frozenset(id(part) for part in language if any(part is each for each in function.__globals__.values()))
        if parts in replaced:
            return None
        replaced.add(parts)
        return replace(function)

    def collecting(self: Any, args: Any, kwargs: Any) -> Any:
        result = collect(self, args, kwargs)
        arguments[:] = sorted({span for value in (*result[0], *result[1].values()) for span in spans(value)})
        return result

    def checked(access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def wrapper(self: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            used = pointers.data[np.broadcast_to(rest[mask_at].data, pointers.data.shape)].astype(np.int64)
            size = pointers.get_element_ty().primitive_bitwidth // 8
            starts, ends = np.array(arguments).T if arguments else (np.empty(0), np.empty(0))
            at = np.searchsorted(starts, used, side="right") - 1
            assert (at >= 0).all(), "a kernel reads or writes before its arguments' memory"
            assert (used + size <= ends[at]).all(), "a kernel reads or writes past the end of an argument's memory"
            return access(self, pointers, *rest, **options)

        return wrapper

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", executing)
    monkeypatch.setattr(interpreter, "_patch_lang", replacing)
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", collecting)
    # load(pointers, mask, ...), store(pointers, values, mask, ...)
    monkeypatch.setattr(builder, "create_masked_load", checked(builder.create_masked_load, 0))
    monkeypatch.setattr(builder, "create_masked_store", checked(builder.create_masked_store, 1))
    yield


def spans(value: Any) -> list[tuple[int, int]]:
    """The memory of an argument: a tensor's storage, a descriptor's tensor's, those of a tuple's members."""
    if isinstance(value, tuple):
        return [span for member in value for span in spans(member)]
    value = getattr(value, "base", value)
    if not hasattr(value, "untyped_storage"):
        return []
    storage = value.untyped_storage()
    return [(storage.data_ptr(), storage.data_ptr() + storage.nbytes())] if storage.nbytes() else []
