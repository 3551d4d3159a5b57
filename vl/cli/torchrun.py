"""Commands that torchrun starts several times: what goes wrong for all of them is told once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import typer

from vl.cli.console import EXIT_UNUSABLE

_PATIENCE = timedelta(seconds=10)


@contextmanager
def told_once() -> Iterator[None]:
    """A block whose `vl.Error` ends the command, with its message in the first process alone that has it to tell."""
    from vl.errors import Error

    try:
        yield
    except Error as error:
        if _has_been_told(str(error)):
            raise typer.Exit(EXIT_UNUSABLE) from None
        raise


def _has_been_told(message: str) -> bool:
    """Whether another process has told this, by torchrun's own store; False where there is none, or it does not say."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    from torch.distributed import TCPStore

    key = f"minimax-vl/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
    key += hashlib.sha256(message.encode("utf-8", "replace")).hexdigest()
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=_PATIENCE).add(key, 1) > 1
    except (KeyError, ValueError, RuntimeError, OSError):
        return False
