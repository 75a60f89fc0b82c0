"""When a process has its turn: before all ordinary ones, as long as it also rests."""

from __future__ import annotations

import os
import resource
from typing import Final

RESTLESS_SECONDS: Final = 0.05
"""For how long a process that goes first may run without a rest."""

_POLICY = os.SCHED_RR | os.SCHED_RESET_ON_FORK
_PRIORITY = 1  # the lowest of those that go before ordinary processes


def go_first(pid: int) -> bool:
    """Have the process ``pid``, which has one thread, run before all ordinary ones; return whether it does.

    The rest of the machine is not starved by it, whatever it does: it has one of several processors at most
    (where there is only one, this function does nothing), as what it forks, threads included, is ordinary
    and cannot become anything else. It must have called :func:`limit` itself. Raises OSError where that is
    not allowed, as in some containers.
    """
    if len(os.sched_getaffinity(pid)) < 2:
        return False
    os.sched_setscheduler(pid, _POLICY, os.sched_param(_PRIORITY))
    return True


def limit() -> None:
    """Have the kernel send this process SIGXCPU after ``RESTLESS_SECONDS`` of going first without a rest.

    Then it must :func:`go_with_others`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    resource.setrlimit(resource.RLIMIT_RTTIME, (int(RESTLESS_SECONDS * 1e6), hard))


def go_with_others() -> None:
    """Be an ordinary process again."""
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    limit()  # the kernel adds a second whenever it is reached
