"""Named network namespaces, as ``ip netns`` makes and shows them.

A name in ``/run/netns`` is a bind mount of the namespace: it lives as long as the name, a process or a
socket in it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minerva.linux.errors import LinuxError

RUN_NETNS = Path("/run/netns")

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: Path, flags: int) -> None:
    _check(_libc.mount(source.encode(), str(target).encode(), b"none", flags, None), f"mount {target}")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (``unshare(2)``). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace of ``descriptor``. Raises OSError."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def open_current() -> int:
    """Return a descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A named network namespace that this process may enter; :meth:`delete` removes the name."""

    def __init__(self, name: str) -> None:
        """Open the namespace called ``name``. Raises :class:`LinuxError` if there is none."""
        self.name = name
        self.path = RUN_NETNS / name
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LinuxError(f"cannot open the network namespace {name}: {error.strerror}") from error

    @classmethod
    def create(cls, name: str) -> Namespace:
        """Make a new namespace called ``name`` and open it. Raises :class:`LinuxError`."""
        path = RUN_NETNS / name
        try:
            _prepare_run_netns()
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        except FileExistsError:
            raise LinuxError(f"there is already a network namespace called {name}") from None
        except OSError as error:
            raise LinuxError(f"cannot make the network namespace {name}: {error}") from error
        own = open_current()
        try:
            unshare(CLONE_NEWNET)
            try:
                _mount("/proc/thread-self/ns/net", path, _MS_BIND)
            finally:
                enter(own)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise LinuxError(f"cannot make the network namespace {name}: {error}") from error
        finally:
            os.close(own)
        return cls(name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Do what is inside in this namespace. Never await inside: the whole thread is there."""
        own = open_current()
        try:
            enter(self.descriptor)
            yield
        finally:
            enter(own)
            os.close(own)

    def close(self) -> None:
        """Close the descriptor; the namespace stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def delete(self) -> None:
        """Close it and remove its name; it goes when no process and no socket is left in it."""
        self.close()
        delete_name(self.name)


def _prepare_run_netns() -> None:
    RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    # As ip netns does it: a shared mount point, so that an unmounted name is gone everywhere at once.
    try:
        _mount("", RUN_NETNS, _MS_SHARED | _MS_REC)
    except OSError:
        _mount(str(RUN_NETNS), RUN_NETNS, _MS_BIND | _MS_REC)
        _mount("", RUN_NETNS, _MS_SHARED | _MS_REC)


def delete_name(name: str) -> None:
    """Remove the name ``name`` from ``/run/netns`` if it is there."""
    path = RUN_NETNS / name
    _libc.umount2(str(path).encode(), _MNT_DETACH)
    # A mount that is just going may still keep the file busy for a moment.
    for _ in range(50):
        try:
            path.unlink(missing_ok=True)
        except OSError:
            _libc.umount2(str(path).encode(), _MNT_DETACH)
            time.sleep(0.01)
        else:
            return


def names(prefix: str) -> list[str]:
    """Return the names of all namespaces whose name starts with ``prefix``, sorted."""
    if not RUN_NETNS.is_dir():
        return []
    return sorted(path.name for path in RUN_NETNS.iterdir() if path.name.startswith(prefix))


NOTHING_LEARNT: dict[str, str | int] = {
    **{
        f"ipv6/conf/{which}/{name}": value
        for which in ("all", "default")
        for name, value in {
            "disable_ipv6": 0,
            "accept_ra": 0,
            "accept_redirects": 0,
            "autoconf": 0,
        }.items()
    },
    "ipv6/conf/default/addr_gen_mode": 1,
}
"""Settings of a namespace with IPv6 in which no address or route comes from anybody but us."""


def write_sysctls(settings: dict[str, str | int], *, optional: frozenset[str] = frozenset()) -> None:
    """Write ``/proc/sys/net`` settings of the calling thread's namespace, in the order given.

    Keys are paths below ``/proc/sys/net``. Those in ``optional`` may be absent from this kernel. Raises
    :class:`LinuxError`.
    """
    for key, value in settings.items():
        try:
            Path("/proc/sys/net", key).write_text(f"{value}\n")
        except OSError as error:
            if key not in optional:
                raise LinuxError(f"cannot set net/{key} to {value}: {error.strerror}") from error
