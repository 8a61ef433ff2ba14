"""Freed memory: kept while a run trains, given back after it. In a process of its own, whose allocator it changes."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")

_PROGRAM = """
import json, resource
import torch
from pathlib import Path
from cpt_deploy.training.loop.allocator_settings import freed_memory_kept

BLOCK = 12_000_000  # 48 MB of float32, above what glibc ever keeps by itself

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

faults()
outside, start = faults(), resident_mb()
with freed_memory_kept():
    faults()
    inside, kept = faults(), resident_mb()
print(json.dumps({"outside": outside, "inside": inside, "start": start, "kept": kept, "end": resident_mb(),
                  "after": faults()}))
"""


def test_a_block_is_faulted_in_once_and_given_back_at_the_end():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    pages = 8 * 48_000_000 / 2**21  # at least so many, if all pages are huge ones
    assert seen["outside"] > pages
    assert seen["inside"] < seen["outside"] / 10
    assert seen["kept"] > seen["start"] + 40
    assert seen["end"] < seen["start"] + 20
    assert seen["after"] > pages
