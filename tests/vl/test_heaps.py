from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vl.heaps import ARENAS

HEAPS = """
import ctypes, sys, threading
from vl.heaps import bound_arenas

if sys.argv[2] == "bound":
    assert bound_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = ctypes.c_int, ctypes.c_void_p
libc.fclose.argtypes = (ctypes.c_void_p,)
together = threading.Barrier(6)

def allocate():
    libc.malloc(5000)
    together.wait()  # a thread that has ended leaves its heap to the next

threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_threads_share_a_few_heaps(tmp_path: Path) -> None:
    heaps = {}
    for mode in ("bound", "free"):
        report = tmp_path / f"{mode}.xml"
        subprocess.run([sys.executable, "-c", HEAPS, str(report), mode], check=True)
        heaps[mode] = report.read_text().count("<heap nr=")
    assert heaps["bound"] <= ARENAS < heaps["free"]


HOLES = """
import ctypes, os
from vl.heaps import trim

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
blocks = [libc.malloc(10_000) for _ in range(5000)]
for block in blocks:
    ctypes.memset(block, 1, 10_000)
for block in blocks[:-1]:  # the last keeps the heap from shrinking by itself
    libc.free(block)
before = resident()
trim()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a function of glibc")
def test_what_is_free_goes_back_to_the_system() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True)
    assert int(found.stdout) > 40_000_000
