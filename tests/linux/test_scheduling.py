"""Who goes first, and that nobody can do so for long."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minerva.linux import scheduling

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors"),
]

FIRST = os.SCHED_RR | os.SCHED_RESET_ON_FORK

START = """
import os, signal, sys, threading
from minerva.linux import scheduling
signal.signal(signal.SIGXCPU, lambda *_: scheduling.go_with_others())
scheduling.limit()
print("ready", flush=True)
sys.stdin.readline()
"""
RESTLESS = """
while True:
    pass
"""
GREEDY = """
def tell():
    print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, flush=True)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("refused", flush=True)

os.setresuid(65534, 65534, 65534)
thread = threading.Thread(target=tell)
thread.start()
thread.join()
if os.fork() == 0:
    tell()
"""


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line before it does what it is for."""
    command = [sys.executable, "-c", START + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def tell_to_go_on(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


def test_what_a_process_starts_does_not_go_first() -> None:
    """Neither a thread nor a child, and neither can change that."""
    with process(GREEDY) as started:
        assert scheduling.go_first(started.pid)
        assert os.sched_getscheduler(started.pid) == FIRST
        tell_to_go_on(started)
        assert started.stdout is not None
        assert started.stdout.read().split() == [str(os.SCHED_OTHER), "refused"] * 2


def test_who_does_not_rest_goes_with_others() -> None:
    """Each time within the same limit, which the kernel would raise by a second each time."""
    with process(RESTLESS) as started:
        tell_to_go_on(started)
        for _ in range(3):
            assert scheduling.go_first(started.pid)
            begun = time.monotonic()
            while os.sched_getscheduler(started.pid) == FIRST:
                assert time.monotonic() - begun < 0.9
                time.sleep(0.005)
        assert started.poll() is None


def test_nobody_goes_first_on_the_only_processor() -> None:
    with process("") as started:
        os.sched_setaffinity(started.pid, {min(os.sched_getaffinity(0))})
        assert not scheduling.go_first(started.pid)
        assert os.sched_getscheduler(started.pid) == os.SCHED_OTHER


def test_a_process_that_is_gone() -> None:
    with process("") as started:
        started.kill()
        started.wait()
        with pytest.raises(OSError, match="No such process"):
            scheduling.go_first(started.pid)
