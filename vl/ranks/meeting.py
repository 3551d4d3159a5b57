"""The folder in which the ranks meet: a file by which each finds the others."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def remove_meeting(folder: str | os.PathLike[str]) -> None:
    """Remove it, also while a rank looks there for others, or others remove it too; each may be killed meanwhile."""
    ended = Path(f"{os.fspath(folder)}-ended")  # a rank that looks makes its file anew, where there is still a folder
    with suppress(OSError):
        os.rename(folder, ended)
    for _ in range(3):  # a file may have been on its way into it
        shutil.rmtree(ended, ignore_errors=True)
