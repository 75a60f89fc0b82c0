"""What the kernel leaves to network hardware: to be taken back where frames must be as they are on a wire."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


def leave_nothing(device: str) -> None:
    """Have the kernel itself compute the checksums of what ``device`` sends, and cut what is too long.

    For who looks at frames there, before any hardware: one would see packets of 64 KiB with wrong checksums.
    Works in the calling thread's namespace. Raises OSError; a device that cannot is as we want it.
    """
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0), 8)
    request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
