"""What Linux does with the device of a serial line: settings, modem lines, breaks (termios(3), ioctl_tty(2)).

All of it may block for seconds on an adapter that is sick. Errors are OSError; what a line cannot do, and
what its driver silently does differently, is ValueError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct
import termios
from typing import Final

from minerva.console.backends.base import Flow, LineSettings, Modem

_PSEUDOTERMINALS: Final = range(136, 144)
"""Their major numbers (devices.txt of Linux)."""
_CMSPAR: Final = 0o10000000000
_BOTHER: Final = 0o010000
_TIOCSBRK: Final = 0x5427
_TIOCCBRK: Final = 0x5428
_TCGETS2: Final = 0x802C542A
_TCSETS2: Final = 0x402C542B
_TERMIOS2: Final = struct.Struct("=4I20s2I")
"""Flags of input, output, line and local; discipline and characters; speeds of input and output in bit/s."""
_OTHER_TERMIOS2: Final = ("alpha", "mips", "parisc", "ppc", "powerpc", "sparc")
"""Where custom speeds would need other numbers than these."""
_SPEEDS: Final = {
    int(name[1:]): constant
    for name, constant in vars(termios).items()
    if name[0] == "B" and name[1:].isdigit() and name != "B0"
}
_NAMES: Final = {constant: speed for speed, constant in _SPEEDS.items()}
_TOLERANCE: Final = 0.03
"""Receivers bear about so much of a wrong speed."""
_BITS: Final = {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}
_PARITIES: Final = {
    "N": 0,
    "E": termios.PARENB,
    "O": termios.PARENB | termios.PARODD,
    "M": termios.PARENB | termios.PARODD | _CMSPAR,
    "S": termios.PARENB | _CMSPAR,
}
_PARITY: Final = termios.PARENB | termios.PARODD | _CMSPAR
_MODEM: Final = {
    termios.TIOCM_CTS: Modem.CTS,
    termios.TIOCM_DSR: Modem.DSR,
    termios.TIOCM_RI: Modem.RI,
    termios.TIOCM_CD: Modem.CD,
}


def open_device(path: str) -> int:
    """Open a device for ourselves and return its descriptor. Raises BlockingIOError if another one has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Not a device that we must not touch.
        termios.tcgetattr(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_pseudoterminal(descriptor):
            # Keeps out those who respect no locks, but for root's. At a pseudoterminal it would last longer.
            fcntl.ioctl(descriptor, termios.TIOCEXCL)
    except termios.error as error:
        os.close(descriptor)
        raise OSError(*error.args) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_pseudoterminal(descriptor: int) -> bool:
    """Return whether a device is one of those that programs make."""
    return os.major(os.fstat(descriptor).st_rdev) in _PSEUDOTERMINALS


def apply(descriptor: int, settings: LineSettings) -> None:
    """Let all bytes pass as they are, with these settings. Raises ValueError with what is not done."""
    if settings.flow is Flow.DSRDTR:
        raise ValueError("Linux has no flow control by DSR and DTR")
    if settings.stop_bits == 1.5 and settings.data_bits != 5:
        raise ValueError("1.5 stop bits go with 5 data bits only")
    control = termios.CREAD | termios.CLOCAL | termios.HUPCL
    control |= _BITS[settings.data_bits] | _PARITIES[settings.parity]
    if settings.stop_bits > 1:
        control |= termios.CSTOPB
    if settings.flow is Flow.RTSCTS:
        control |= termios.CRTSCTS
    software = termios.IXON | termios.IXOFF if settings.flow is Flow.XONXOFF else 0
    speed = _SPEEDS.get(settings.speed)
    constant = termios.B9600 if speed is None else speed
    try:
        characters = termios.tcgetattr(descriptor)[6]
        # Else nothing to read and nobody to read from look the same.
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        attributes = [software, 0, control, 0, constant, constant, characters]
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    except termios.error as error:
        # The C library notices some of what a driver does not do, and does not say which.
        _check(descriptor, settings)
        raise OSError(*error.args) from error
    if speed is None:
        _set_custom_speed(descriptor, settings.speed)
    _check(descriptor, settings)


def modem(descriptor: int) -> Modem:
    """Return the lines that the device asserts. Raises OSError, also where there are no such lines."""
    (bits,) = struct.unpack("I", fcntl.ioctl(descriptor, termios.TIOCMGET, bytes(4)))
    found = Modem.NONE
    for bit, line in _MODEM.items():
        if bits & bit:
            found |= line
    return found


def set_lines(descriptor: int, *, dtr: bool | None = None, rts: bool | None = None) -> None:
    """Assert or clear DTR and RTS; without effect where there are no such lines."""
    for wanted, bit in ((dtr, termios.TIOCM_DTR), (rts, termios.TIOCM_RTS)):
        if wanted is not None:
            request = termios.TIOCMBIS if wanted else termios.TIOCMBIC
            try:
                fcntl.ioctl(descriptor, request, struct.pack("I", bit))
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise


def set_break(descriptor: int, on: bool) -> None:
    """Begin or end a break."""
    fcntl.ioctl(descriptor, _TIOCSBRK if on else _TIOCCBRK)


def waiting(descriptor: int) -> int:
    """Return how many bytes that were written the chip does not have yet."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def drain(descriptor: int) -> None:
    """Wait until the chip has sent all: for ever, as long as there is something that it does not have yet."""
    try:
        termios.tcdrain(descriptor)
    except termios.error as error:
        raise OSError(*error.args) from error


def discard(descriptor: int) -> None:
    """Throw away what was not sent yet."""
    try:
        termios.tcflush(descriptor, termios.TCOFLUSH)
    except termios.error as error:
        raise OSError(*error.args) from error


def _set_custom_speed(descriptor: int, speed: int) -> None:
    if platform.machine().startswith(_OTHER_TERMIOS2):
        raise ValueError(f"{speed} bit/s cannot be set on this kind of processor")
    before = fcntl.ioctl(descriptor, _TCGETS2, bytes(_TERMIOS2.size))
    input_, output, control, local, rest, _, _ = _TERMIOS2.unpack(before)
    # No speed of its own for the input.
    control = control & ~(termios.CBAUD | termios.CIBAUD) | _BOTHER
    fcntl.ioctl(descriptor, _TCSETS2, _TERMIOS2.pack(input_, output, control, local, rest, speed, speed))


def _check(descriptor: int, wanted: LineSettings) -> None:
    """Raise ValueError if the driver does not do what it was told, which it tells only who asks."""
    attributes = termios.tcgetattr(descriptor)
    control, speed = attributes[2], attributes[5]
    if speed == _BOTHER:
        found = fcntl.ioctl(descriptor, _TCGETS2, bytes(_TERMIOS2.size))
        speed = _TERMIOS2.unpack(found)[-1]
    else:
        speed = _NAMES.get(speed, speed)
    if abs(speed - wanted.speed) > wanted.speed * _TOLERANCE:
        raise ValueError("its driver has no such speed")
    if control & termios.CSIZE != _BITS[wanted.data_bits]:
        raise ValueError("it has not so many data bits")
    if control & _PARITY != _PARITIES[wanted.parity]:
        raise ValueError("it has no such parity")
    if bool(control & termios.CSTOPB) != (wanted.stop_bits > 1):
        raise ValueError("it has not so many stop bits")
    if bool(control & termios.CRTSCTS) != (wanted.flow is Flow.RTSCTS):
        raise ValueError("it has no flow control by RTS and CTS")
