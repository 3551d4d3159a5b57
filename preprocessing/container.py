"""What this process may take of its host: CPUs and memory, in a container or out of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """CPUs that this process may use, at least 1: those it may run on, and no more than its control groups give it.

    A group's quota of CPU time is rounded up, and one that changes later is not noticed. Source: the kernel's
    Documentation/admin-guide/cgroup-v2.rst, and scheduler/sched-bwc.rst for the older names.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(here, quota() or here))


def memory_left() -> int | None:
    """Bytes of host memory that the control groups of this process may yet take; None if nothing tells or bounds that.

    Files that the system keeps in memory count for a group, but make room. Source: the kernel's
    Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst for the older names.
    """
    return min(_left(), default=None)


@lru_cache(maxsize=1)  # it is asked for with every large image, and its files take as long as a small one
def quota() -> int | None:
    """CPUs that the control groups of this process give it, rounded up; None if they bound none."""
    return min(_quotas(), default=None)


def _quotas() -> Iterator[int]:
    """CPUs that each group gives, rounded up."""
    for folder in _groups("cpu"):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
                if quota > 0 and period > 0:  # -1 is no bound
                    yield -(-quota // period)


def _left() -> Iterator[int]:
    """Bytes that each group may yet take."""
    for folder in _groups("memory"):
        for most, taken, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            with suppress(OSError, ValueError, KeyError):  # no such file, or "max"
                left = int((folder / most).read_text()) - int((folder / taken).read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                kept = (int(counts[f"{prefix}{name}"]) for name in ("active_file", "inactive_file"))
                yield max(0, left + sum(kept))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, its own first: any of them may have a limit.

    In a container they begin at its own, whatever they are called on the host.
    """
    paths = {"": "/"}
    with suppress(OSError, ValueError):  # elsewhere than on Linux there are none
        paths |= {name: path for _, names, path in _memberships() for name in names.split(",")}
    for top, path in ((_GROUPS, paths[""]), (_GROUPS / controller, paths.get(controller, "/"))):
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _memberships() -> Iterator[list[str]]:
    """Hierarchy, controllers (none in version 2) and path of each."""
    return (line.split(":", 2) for line in _OWN.read_text().splitlines())
