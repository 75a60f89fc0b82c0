"""The fuzz targets begin, and bear their own seeds: what is fuzzed for hours must not be broken unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TARGETS = sorted((Path(__file__).parent.parent / "fuzz").glob("fuzz_*.py"))

# In the place of atheris: the seeds of each, nothing, and a few bytes at random. In a process of their own,
# as they leave to the end of it what a target has open.
TRY = """
import random, runpy, sys, types

def run(target, seeds=()):
    chance = random.Random(1)
    for data in [*seeds, b"", *(chance.randbytes(chance.randrange(1, 200)) for _ in range(20))]:
        target(data)
    print("begun")

sys.modules["_harness"] = types.ModuleType("_harness")
sys.modules["_harness"].run = run
for path in sys.argv[1:]:
    print(path, flush=True)
    runpy.run_path(path, run_name="__main__")
"""


def test_they_begin() -> None:
    result = subprocess.run(
        [sys.executable, "-c", TRY, *map(str, TARGETS)], capture_output=True, text=True, check=False
    )
    begun = result.stdout.split()
    assert result.returncode == 0, f"{begun[-1]}: {result.stderr}"
    assert begun[::2] == [str(path) for path in TARGETS]
    assert set(begun[1::2]) == {"begun"}
