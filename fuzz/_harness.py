"""Runs one fuzz target under atheris with its seeds: ``python fuzz/fuzz_X.py [libFuzzer options]``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris


def run(target: Callable[[bytes], None], seeds: Iterable[bytes] = ()) -> None:
    """Fuzz ``target`` until it raises or libFuzzer's own limits (``-max_total_time=…``) end the run."""
    with tempfile.TemporaryDirectory(prefix="minerva-fuzz-") as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, f"seed{number:03}").write_bytes(seed)
        # libFuzzer ends its process without a word to Python, so somebody else has to clean up.
        pid = os.fork()
        if pid == 0:
            atheris.instrument_all()
            atheris.Setup([*sys.argv, corpus], target)
            atheris.Fuzz()
        _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
