"""What a laboratory looks like: nodes, the links between two of them, and LANs of many.

A built-in shape is one word (``ring:5``), anything else a TOML file::

    links = [["a", "b"], ["b", "c"]]
    lans = [["a", "c", "d"]]

    [nodes.a.rpl]       # optional: settings of a node, as in its minerva.toml
    root = true
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minerva.core.errors import UsageError

MAX_NODES: Final = 500
"""How many nodes a laboratory may have; below the 1,024 ports of a bridge, so that any LAN fits."""

MAX_SEGMENTS: Final = 5_000
"""How many links and LANs a laboratory may have."""

MIN_RING: Final = 3
"""The smallest ring: two nodes would need two parallel links."""

_SHAPE = re.compile(r"(line|ring|star|lan|tree):([0-9]{1,9})(?:x([0-9]{1,9}))?", re.ASCII)
_NODE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}", re.ASCII)
_SHOWN = 10  # names in a sentence before it says how many more there are


class SegmentKind(Enum):
    """How the nodes of a segment are joined."""

    LINK = "link"
    LAN = "lan"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the laboratory; ``settings`` is what the topology file says of it."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Segment:
    """A link of two nodes or a LAN of two or more; ``ends`` are pairs of node and its interface there."""

    name: str
    kind: SegmentKind
    ends: tuple[tuple[str, str], ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes on this segment."""
        return tuple(node for node, _ in self.ends)


@dataclass(frozen=True, slots=True)
class Topology:
    """A connected graph of nodes and segments. Interfaces are eth0, eth1, ... in the order of segments."""

    name: str
    nodes: tuple[Node, ...]
    segments: tuple[Segment, ...]


def parse_topology(text: str) -> Topology:
    """Return the topology that ``text`` names: a built-in shape, or the path of a TOML file.

    N counts all nodes; ``tree:AxD`` has A children a node and D levels below the root. Raises
    :class:`UsageError`.
    """
    if match := _SHAPE.fullmatch(text):
        return _shape(text, *match.groups())
    if text.endswith(".toml") or "/" in text:
        path = Path(text)
        try:
            content = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read the topology file {text}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"the topology file {text} is not readable as UTF-8 text") from error
        return topology_from_toml(content, path.stem)
    raise _no_such_topology(text)


def _no_such_topology(text: str) -> UsageError:
    return UsageError(
        f"no such topology {text!r}: use line:N, ring:N, star:N, lan:N, tree:AxD or the path of a TOML file"
    )


def _shape(text: str, shape: str, first: str, second: str | None) -> Topology:
    if (shape == "tree") != (second is not None):
        raise _no_such_topology(text)
    if shape == "tree":
        links = _tree(text, int(first), int(second or 0))
        return _build(text, links, [])
    count, smallest = int(first), MIN_RING if shape == "ring" else 2
    if not smallest <= count <= MAX_NODES:
        raise UsageError(f"{text}: a {shape} has {smallest} to {MAX_NODES} nodes, choose N in that range")
    names = [f"n{number}" for number in range(1, count + 1)]
    if shape == "lan":
        return _build(text, [], [names])
    if shape == "star":
        return _build(text, [(names[0], name) for name in names[1:]], [])
    links = list(pairwise(names))
    return _build(text, [*links, (names[-1], names[0])] if shape == "ring" else links, [])


def _tree(text: str, children: int, levels: int) -> list[tuple[str, str]]:
    """Number the nodes level by level: node k (from 1) has its children at A * (k - 1) + 2 and after."""
    if children < 1 or levels < 1:
        raise UsageError(f"{text}: a tree has at least 1 child a node and 1 level below the root")
    count, width = 1, 1
    for _ in range(levels):
        width *= children
        count += width
        if count > MAX_NODES:
            raise UsageError(f"{text}: that tree has more than {MAX_NODES} nodes, make it smaller")
    return [(f"n{(number - 2) // children + 1}", f"n{number}") for number in range(2, count + 1)]


def topology_from_toml(text: str, name: str) -> Topology:
    """Return the topology described by the content of a TOML file; ``name`` is what to call it.

    Raises :class:`UsageError`.
    """
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"topology {name}: not TOML: {error}") from error
    if unknown := sorted(content.keys() - {"links", "lans", "nodes"}):
        raise UsageError(
            f"topology {name}: {unknown[0]!r} means nothing here: use links, lans and [nodes.NAME]"
        )
    links = _name_lists(name, "links", content.get("links", []), lambda size: size == 2, "exactly two")
    lans = _name_lists(name, "lans", content.get("lans", []), lambda size: size >= 2, "two or more")
    settings = content.get("nodes", {})
    if not isinstance(settings, dict) or not all(isinstance(entry, dict) for entry in settings.values()):
        raise UsageError(f"topology {name}: write the settings of a node as a table, [nodes.NAME]")
    return _build(name, links, lans, settings)


def _name_lists(
    name: str, key: str, value: Any, fits: Callable[[int], bool], wanted: str
) -> list[Sequence[str]]:
    if not isinstance(value, list):
        raise UsageError(f"topology {name}: {key} must be a list of lists of node names")
    for entry in value:
        if (
            not isinstance(entry, list)
            or not all(isinstance(node, str) for node in entry)
            or not fits(len(entry))
        ):
            raise UsageError(f"topology {name}: {entry!r} in {key} must be a list of {wanted} node names")
        for node in entry:
            if not _NODE_NAME.fullmatch(node):
                raise UsageError(
                    f"topology {name}: {node!r} cannot be a node's name: use 1 to 31 of a-z, 0-9 and '-', "
                    "not beginning with '-'"
                )
        if len(set(entry)) != len(entry):
            raise UsageError(f"topology {name}: {entry!r} in {key} names a node twice, name each once")
    return value


def _build(
    name: str,
    links: Sequence[Sequence[str]],
    lans: Sequence[Sequence[str]],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Topology:
    """Name segments and interfaces, and check what concerns the whole."""
    settings = settings or {}
    nodes = tuple(dict.fromkeys(node for group in (*links, *lans) for node in group))
    if not nodes:
        raise UsageError(f"topology {name}: it has no nodes, add links or lans")
    if len(nodes) > MAX_NODES or len(links) + len(lans) > MAX_SEGMENTS:
        raise UsageError(
            f"topology {name}: at most {MAX_NODES} nodes and {MAX_SEGMENTS} links and lans are possible"
        )
    if unknown := sorted(settings.keys() - set(nodes)):
        raise UsageError(f"topology {name}: [nodes.{unknown[0]}] is on no link and no lan, add it to one")
    interfaces = dict.fromkeys(nodes, 0)
    segments: dict[str, Segment] = {}

    def add(segment: str, kind: SegmentKind, members: Iterable[str]) -> None:
        ends = []
        for node in members:
            ends.append((node, f"eth{interfaces[node]}"))
            interfaces[node] += 1
        segments[segment] = Segment(segment, kind, tuple(ends))

    for one, other in links:
        add(_unused(f"{one}-{other}", segments), SegmentKind.LINK, (one, other))
    for number, members in enumerate(lans, start=1):
        add(f"lan{number}", SegmentKind.LAN, members)
    _check_connected(name, nodes, segments.values())
    return Topology(
        name,
        tuple(Node(node, MappingProxyType(dict(settings.get(node, {})))) for node in nodes),
        tuple(segments.values()),
    )


def _unused(name: str, taken: Mapping[str, Segment]) -> str:
    """Return ``name``, or with parallel links the first of name-2, name-3, ... that is free."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _check_connected(name: str, nodes: Sequence[str], segments: Iterable[Segment]) -> None:
    joined: dict[str, set[str]] = {node: set() for node in nodes}
    for segment in segments:
        # Through one member all others are reached, without the square of a LAN's size.
        hub = segment.nodes[0]
        for node in segment.nodes[1:]:
            joined[hub].add(node)
            joined[node].add(hub)
    reached, waiting = {nodes[0]}, [nodes[0]]
    while waiting:
        found = joined[waiting.pop()] - reached
        reached |= found
        waiting.extend(found)
    for node in nodes:
        if node not in reached:
            raise UsageError(
                f"topology {name}: nothing joins {node} to {nodes[0]}, add a link between the two parts"
            )


def find_link(topology: Topology, text: str) -> Segment:
    """Return the link called ``text``, with its ends in either order: ``n2-n3`` or ``n3-n2``.

    Raises :class:`UsageError` if there is none.
    """
    links = [segment for segment in topology.segments if segment.kind is SegmentKind.LINK]
    names = {segment.name: segment for segment in links}
    for segment in links:
        one, other = segment.nodes
        # A parallel link keeps its "-2" at the end.
        names.setdefault(f"{other}-{one}{segment.name[len(one) + len(other) + 1 :]}", segment)
    if text in names:
        return names[text]
    if not links:
        raise UsageError(f"no link {text!r}: the topology {topology.name} has only lans")
    more = f" and {len(links) - _SHOWN} more" if len(links) > _SHOWN else ""
    raise UsageError(
        f"no link {text!r} in the topology {topology.name}: "
        f"its links are {', '.join(segment.name for segment in links[:_SHOWN])}{more}"
    )


def describe(topology: Topology) -> str:
    """Return one line that says what there is: ``ring:4: 4 nodes, 4 links``."""
    counts = [(len(topology.nodes), "node")]
    counts += [
        (sum(segment.kind is kind for segment in topology.segments), kind.value) for kind in SegmentKind
    ]
    parts = (f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count)
    return f"{topology.name}: {', '.join(parts)}"


def draw(topology: Topology) -> str:
    """Return a drawing for people, a line for each segment: ``n1 eth0 ─── eth0 n2``."""
    width = max((len(" ".join(segment.ends[0])) for segment in topology.segments), default=0)
    lines = []
    for segment in topology.segments:
        (node, interface), *others = segment.ends
        if segment.kind is SegmentKind.LINK:
            lines.append(f"{f'{node} {interface}':>{width}} ─── {others[0][1]} {others[0][0]}")
        else:
            members = ", ".join(f"{node} {interface}" for node, interface in segment.ends)
            lines.append(f"{segment.name} ═══ {members}")
    return "\n".join(lines)
