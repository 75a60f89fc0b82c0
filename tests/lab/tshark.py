"""tshark as a witness: what a program that is not ours reads in our captures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Frame = dict[str, list[str]]
"""The fields that were asked for, each with all its values in the frame, outermost first."""

ERROR, WARNING = 0x800000, 0x600000
"""Severities of ``_ws.expert.severity``."""

_SEPARATOR, _AGGREGATOR = "\t", "|"

# GRASP has no dissector of its own, but its messages are single CBOR items.
_GRASP_AS_CBOR = 'local cbor = Dissector.get("cbor")\nDissectorTable.get("udp.port"):add(7017, cbor)\n'


def present() -> bool:
    """Return whether tshark is installed."""
    return shutil.which("tshark") is not None


def merge(files: Iterable[Path], into: Path) -> None:
    """Write all frames of ``files``, captures of several links, to one file in the order of time."""
    subprocess.run(
        ["mergecap", "-w", str(into), *map(str, files)], check=True, capture_output=True, timeout=60
    )


def reading_grasp(directory: Path) -> tuple[str, str]:
    """Return the options with which tshark reads GRASP as CBOR; writes a script to ``directory``."""
    script = directory / "grasp.lua"
    script.write_text(_GRASP_AS_CBOR)
    return ("-X", f"lua_script:{script}")


@dataclass(frozen=True)
class Witness:
    """One capture, read with the Wireshark configuration directory ``profile``, which may have keys."""

    file: Path
    profile: Path
    options: tuple[str, ...] = ()

    def frames(self, condition: str, *fields: str) -> list[Frame]:
        """Return ``fields`` of the frames that the display filter ``condition`` selects, in the file's order.

        An empty condition selects all.
        """
        asked = ("frame.number", *fields)
        arguments = [word for field in asked for word in ("-e", field)]
        text = self._run(
            condition, "-T", "fields", "-E", f"aggregator={_AGGREGATOR}", "-E", "occurrence=a", *arguments
        )
        return [
            {
                field: [part for part in values.split(_AGGREGATOR) if part]
                for field, values in zip(asked, line.split(_SEPARATOR), strict=True)
            }
            for line in text.splitlines()
        ]

    def none(self, *conditions: str) -> None:
        """Check that no frame fulfils any of the display filters ``conditions``."""
        any_of = " || ".join(f"({condition})" for condition in conditions)
        found = self.frames(any_of, "frame.protocols", "_ws.expert.message")
        assert not found, f"{any_of}: {found}"

    def octets(self, condition: str, field: str) -> list[list[bytes]]:
        """Return the bytes of each ``field`` in each frame, also of fields that have no value as text."""
        # Keys repeat in tshark's objects, so they are read as lists of pairs.
        packets = json.loads(self._run(condition, "-T", "jsonraw"), object_pairs_hook=_Pairs)
        return [[bytes.fromhex(value[0]) for value in _values(packet, f"{field}_raw")] for packet in packets]

    def _run(self, condition: str, *arguments: str) -> str:
        command = ["tshark", "-n", *self.options, "-r", str(self.file), *arguments]
        if condition:
            command += ["-Y", condition]
        environment = os.environ | {"WIRESHARK_CONFIG_DIR": str(self.profile), "LC_ALL": "C.UTF-8"}
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, with its keys as often as they are there."""


def _values(item: Any, key: str) -> Iterator[Any]:
    if isinstance(item, _Pairs):
        for name, value in item:
            if name != key:
                yield from _values(value, key)
            elif value and isinstance(value[0], list):
                yield from value  # several in a row were put into one list
            else:
                yield value
    elif isinstance(item, list):
        for value in item:
            yield from _values(value, key)
