"""TUN interfaces."""

from __future__ import annotations

import fcntl
import os
import struct

from minerva.linux.errors import LinuxError

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000


def open_tun(name: str) -> int:
    """Make the TUN interface ``name`` in the calling thread's namespace and return its descriptor.

    One read or write is one IP packet. The interface goes when the last copy of the descriptor is closed.
    Raises :class:`LinuxError`.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LinuxError(
            f"cannot open /dev/net/tun ({error.strerror}): load the kernel module tun"
        ) from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(descriptor)
        raise LinuxError(f"cannot make the TUN interface {name}: {error.strerror}") from error
    return descriptor
