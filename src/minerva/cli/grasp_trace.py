"""``minerva grasp trace``: GRASP messages as they pass the node, or as they were captured."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from minerva.cli import options
from minerva.core.cbor import MAX_SIZE
from minerva.core.text import printable, utc
from minerva.grasp.capture import Captured, CapturedMessage, Counts, GraspCapture
from minerva.grasp.constants import GRASP_LISTEN_PORT, MessageType
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Message, decode
from minerva.grasp.text import endpoint_text, json_text, message_data, message_text, objectives

if TYPE_CHECKING:
    from minerva.asa.protocol import TraceRecord

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class _Seen:
    """A message, or what is to be said in the place of messages, and where it was seen.

    ``time`` is in seconds since 1970. ``message`` is ``None`` if ``data`` is not one.
    """

    time: float
    interface: str
    where: dict[str, str | None]
    text: str  # "where", for people
    direction: str | None
    data: bytes = b""
    message: Message | None = None
    note: str | None = None

    def line(self) -> str:
        """Return it in one printable line."""
        what = message_text(self.data) if self.note is None else printable(self.note)
        parts = (_time_text(self.time), printable(self.text), printable(self.direction or ""), what)
        return "  ".join(part for part in parts if part)

    def json(self) -> dict[str, Any]:
        """Return it as what ``--json`` prints."""
        what = {"message": message_data(self.data)} if self.note is None else {"note": self.note}
        return {"time": self.time, **self.where, "direction": self.direction, **what}


def _time_text(time: float) -> str:
    try:
        return utc(time, "microseconds")
    except (ValueError, OverflowError, OSError):
        return f"{time:g}"


@dataclass(frozen=True, slots=True)
class _Filter:
    """What is to be shown. What is not a message passes unless certain messages are asked for."""

    interface: str | None
    types: frozenset[str]
    objective: str | None

    def passes(self, seen: _Seen) -> bool:
        """Return whether it is to be shown."""
        if self.interface is not None and seen.interface != self.interface:
            return False
        if not self.types and self.objective is None:
            return True
        if seen.message is None or (self.types and seen.message.TYPE.name not in self.types):
            return False
        return self.objective is None or self.objective in (o.name for o in objectives(seen.message))


@click.command(short_help="Show GRASP messages as they pass, or from a capture.")
@click.argument("file", metavar="[FILE.pcap]", type=click.File("rb"), required=False)
@click.option("--interface", metavar="NAME", help="Only what was seen on that interface.")
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice([kind.name for kind in MessageType], case_sensitive=False),
    help="Only messages of that type; may be repeated.",
)
@click.option("--objective", metavar="NAME", help="Only messages that carry that objective.")
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    help=f"In a capture, a port of GRASP besides {GRASP_LISTEN_PORT}; may be repeated.",
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many.")
@options.run_dir
@options.as_json
def trace(
    file: BinaryIO | None,
    interface: str | None,
    types: tuple[str, ...],
    objective: str | None,
    ports: tuple[int, ...],
    count: int | None,
    run_dir: Path,
    as_json: bool,
) -> None:
    """Show GRASP messages, decoded, one a line.

    Without FILE those that this machine's node sends and receives, until ^C. With FILE, in pcap or pcapng,
    or '-' for standard input, those that were captured. Between nodes of the ACP that are no neighbours
    GRASP is encrypted: a capture does not show it, the nodes do.
    """
    wanted = _Filter(interface, frozenset(types), objective)
    if file is None:
        from minerva.cli.grasp_common import until_interrupted

        with until_interrupted(True), closing(_live(run_dir)) as found:
            _show(found, wanted, count, as_json)
        return
    capture = GraspCapture((GRASP_LISTEN_PORT, *ports))
    try:
        _show(map(_captured, capture.read(_chunks(file))), wanted, count, as_json)
    finally:
        _say_what_else(capture.counts)


def _show(found: Iterable[_Seen], wanted: _Filter, count: int | None, as_json: bool) -> None:
    for seen in islice(filter(wanted.passes, found), count):
        line = json_text(seen.json()) if as_json else seen.line()
        # A value may have characters that the terminal's encoding lacks.
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        click.echo(line.encode(encoding, "backslashreplace").decode(encoding))


def _live(run_dir: Path) -> Generator[_Seen, None, None]:
    from minerva.asa import blocking
    from minerva.asa.protocol import API_SOCKET
    from minerva.cli.grasp_common import GraspCommandError, one_sentence

    with one_sentence(), blocking.Grasp.connect(run_dir / API_SOCKET) as grasp:
        yield from map(_recorded, grasp.trace())
    raise GraspCommandError("the node has ended the connection")


def _recorded(record: TraceRecord) -> _Seen:
    # On a link the interface is before the neighbour's address; unicast comes from wherever it does.
    interface, _, _ = record.where.rpartition(" ")
    try:
        message = decode(record.message, max_size=MAX_SIZE)
    except GraspDecodeError:
        message = None
    where: dict[str, str | None] = {"interface": interface or None, "where": record.where}
    return _Seen(record.time, interface, where, record.where, record.direction, record.message, message)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    # read1 does not wait for the rest: a capture that is still being made is shown as it grows.
    read = getattr(file, "read1", file.read)
    while chunk := read(_CHUNK):
        yield chunk


def _captured(captured: Captured) -> _Seen:
    flow = captured.flow
    where = {
        "interface": flow.interface or None,
        "transport": flow.transport.name.removeprefix("IPPROTO_").lower(),
        "source": endpoint_text(flow.source, flow.source_port),
        "destination": endpoint_text(flow.destination, flow.destination_port),
    }
    text = f"{flow.interface} {where['transport']} {where['source']} > {where['destination']}".lstrip()
    direction = None if captured.outgoing is None else ("out" if captured.outgoing else "in")
    time = captured.time_ns / 1e9
    if not isinstance(captured, CapturedMessage):
        return _Seen(time, flow.interface, where, text, direction, note=captured.text)
    message = None if isinstance(captured.message, GraspDecodeError) else captured.message
    return _Seen(time, flow.interface, where, text, direction, captured.data, message)


def _say_what_else(counts: Counts) -> None:
    """Say what could not be read, where it is in nobody's way who processes the messages."""
    remarks = [f"{counts.broken} broken packets were skipped"] if counts.broken else []
    if counts.gaps:
        remarks.append(f"in {counts.gaps} places a part of a connection is missing")
    if counts.cut:
        remarks.append("the capture ends in the middle of a packet")
    if remarks:
        click.echo(f"minerva: {'; '.join(remarks)}", err=True)
