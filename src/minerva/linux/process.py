"""What a process gives up before it reads a stranger's byte."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
from pathlib import Path

ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""A memory file with these can never be changed again, by nobody."""

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_LAST_CAPABILITY = 63


def _prctl(option: int, value: int | bytes = 0) -> int:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    return int(_libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def set_name(name: str) -> None:
    """Set the name that ``ps`` shows for this thread (at most 15 bytes)."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def close_inherited(*, keep: int) -> None:
    """Put /dev/null in the place of standard input and output and close all else but stderr and ``keep``."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, its parent, ends; end now if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def end_with_parent(parent: int) -> None:
    """Have the kernel ask this process to end (SIGTERM) when ``parent``, its parent, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def drop_privileges(uid: int, root: Path, *, open_files: int = 4096) -> None:
    """Become user and group ``uid`` with no capability and no file system but the empty ``root``, for good.

    Everything this process will import must have been imported. Raises OSError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    os.chroot(root)
    os.chdir("/")
    for capability in range(_LAST_CAPABILITY + 1):
        _prctl(_PR_CAPBSET_DROP, capability)  # the numbers above the kernel's last are refused: fine
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    make_unreadable()


def make_unreadable() -> None:
    """Keep other processes of the same user from tracing this one and its memory out of core dumps."""
    _prctl(_PR_SET_DUMPABLE, 0)


def sealed_copy(path: Path, name: str) -> int:
    """Return a sealed memory file with the content of ``path``, which never passes through our memory.

    Raises OSError.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = os.fstat(source).st_size
        offset = 0
        while offset < size:
            copied = os.sendfile(target, source, offset, size - offset)
            if copied == 0:
                break
            offset += copied
    finally:
        os.close(source)
    fcntl.fcntl(target, fcntl.F_ADD_SEALS, ALL_SEALS)
    os.lseek(target, 0, os.SEEK_SET)
    return target
