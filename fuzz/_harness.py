"""Runs one fuzz target under atheris with its seeds: ``python fuzz/fuzz_X.py [libFuzzer options]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris


def run(target: Callable[[bytes], None], seeds: Iterable[bytes] = ()) -> None:
    """Fuzz ``target`` until it raises or libFuzzer's own limits (``-max_total_time=…``) end the run."""
    atheris.instrument_all()
    with tempfile.TemporaryDirectory(prefix="minerva-fuzz-") as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, f"seed{number:03}").write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
