"""What this machine is, as far as it knows."""

from __future__ import annotations

import socket
from pathlib import Path

from minerva import __version__
from minerva.asa.inventory import Description

_MODEL = ("/sys/class/dmi/id/product_name", "/proc/device-tree/model")
_SERIAL = ("/sys/class/dmi/id/product_serial", "/proc/device-tree/serial-number")
_PLACEHOLDERS = ("", "none", "not specified", "default string", "to be filled by o.e.m.", "0")


def describe_machine(name: str = "") -> Description:
    """Return name (the host's, if none is given), model and serial number of this machine."""
    return Description(
        name or socket.gethostname(), f"minerva {__version__}", model=_first(_MODEL), serial=_first(_SERIAL)
    )


def _first(paths: tuple[str, ...]) -> str:
    """Return what the first of the files says that is there, and says anything."""
    for path in paths:
        try:
            # Device trees end their strings with a zero.
            text = Path(path).read_bytes().decode(errors="replace").strip("\0 \n")
        except OSError:
            continue
        if text.lower() not in _PLACEHOLDERS:
            return text
    return ""
