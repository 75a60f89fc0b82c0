"""How the interpreter of a server's process is set up: it has many short pieces of work in a few threads."""

from __future__ import annotations

import gc
import sys

_TURN = 0.02
_ALLOCATIONS = 20_000


def prepare() -> None:
    """Do it, when all that the process needs is imported."""
    # A piece of work takes a few milliseconds. To take the interpreter away from a thread in the middle of
    # it, as is done after five by default, costs more than to let the others wait until it waits itself.
    sys.setswitchinterval(_TURN)
    # What is there now stays, and need not be looked through again for what can go.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)
