"""What a source holds besides images: counted and named by suffix, never dropped in silence."""

from __future__ import annotations

import os
from collections import Counter

from preprocessing import has_image_suffix
from preprocessing.formats import HEIF_SUFFIXES, PLUGIN

_KINDS = 6  # of files passed over that are counted apart


class Passed(Counter[str]):
    """How many files were passed over, by suffix."""

    def takes(self, name: str) -> bool:
        """Whether the file is an image to caption; otherwise it is counted."""
        base = name.rpartition("/")[2]
        if not has_image_suffix(base):
            self[os.path.splitext(base)[1].lower() or "without a suffix"] += 1
        elif base.startswith("."):
            self["hidden"] += 1
        else:
            return True
        return False

    def __str__(self) -> str:
        """For example `12 files: 10 .txt, 2 .heic (pip install pillow-heif)`."""
        total = self.total()
        kinds = sorted(self.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{n:,} {kind}{f' ({PLUGIN})' if kind in HEIF_SUFFIXES else ''}" for kind, n in kinds]
        if len(kinds) > _KINDS:
            counts[_KINDS:] = [f"{sum(n for _, n in kinds[_KINDS:]):,} others"]
        return f"{total:,} {'file' if total == 1 else 'files'}: {', '.join(counts)}"
