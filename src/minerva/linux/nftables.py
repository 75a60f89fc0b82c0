"""nftables through its own library: no program is run, and the connection can be kept."""

from __future__ import annotations

import ctypes
import logging
import re
from typing import Any

from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace

log = logging.getLogger(__name__)

_LIBRARY = "libnftables.so.1"
_COUNTER = re.compile(r"counter (\w+) \{\s*packets (\d+) ")


def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise LinuxError(f"{_LIBRARY} is missing: install nftables (Debian: apt install nftables)") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_error", "nft_ctx_buffer_output"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


class Nftables:
    """A connection to nftables of the namespace in which it is made.

    A table with ``flags owner`` belongs to this connection: nobody else can change it, and it goes when
    the connection is closed or its process ends.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise LinuxError("cannot talk to nftables in this kernel")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, commands: str) -> str:
        """Apply ``commands`` (nft syntax) all or nothing; return what nft prints. Raises LinuxError."""
        result = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context)
        error = self._library.nft_ctx_get_error_buffer(self._context)
        if result != 0:
            raise LinuxError(f"nftables refused the policy: {(error or b'').decode().splitlines()[0]}")
        return (output or b"").decode()

    def close(self) -> None:
        """Close the connection."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def __enter__(self) -> Nftables:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def firewall_counters(where: Namespace | None, table: str) -> dict[str, int]:
    """Return how many packets each named counter of the inet table ``table`` in ``where`` has counted.

    That is for status, so where it cannot be told, that is logged, and there are none.
    """
    if where is None:
        return {}
    try:
        with where.entered(), Nftables() as nftables:
            found = _COUNTER.findall(nftables.run(f"list counters table inet {table}"))
    except (LinuxError, OSError) as error:
        log.error("the firewall's counters in %s: %s", where.name, error)
        return {}
    return {name: int(packets) for name, packets in found}
