"""Topologies: the built-in shapes, files, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.errors import UsageError
from minerva.lab.topology import (
    MAX_NODES,
    SegmentKind,
    Topology,
    describe,
    draw,
    find_link,
    parse_topology,
    topology_from_toml,
)


def names(topology: Topology) -> list[str]:
    return [node.name for node in topology.nodes]


def segments(topology: Topology) -> list[str]:
    return [segment.name for segment in topology.segments]


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("line:2", 2, ["n1-n2"]),
        ("line:4", 4, ["n1-n2", "n2-n3", "n3-n4"]),
        ("ring:3", 3, ["n1-n2", "n2-n3", "n3-n1"]),
        ("star:2", 2, ["n1-n2"]),
        ("star:4", 4, ["n1-n2", "n1-n3", "n1-n4"]),
        ("tree:2x2", 7, ["n1-n2", "n1-n3", "n2-n4", "n2-n5", "n3-n6", "n3-n7"]),
        ("tree:3x1", 4, ["n1-n2", "n1-n3", "n1-n4"]),
        ("tree:1x3", 4, ["n1-n2", "n2-n3", "n3-n4"]),
    ],
)
def test_shapes(text: str, count: int, expected: list[str]) -> None:
    topology = parse_topology(text)
    assert topology.name == text
    assert names(topology) == [f"n{number}" for number in range(1, count + 1)]
    assert segments(topology) == expected
    assert all(segment.kind is SegmentKind.LINK for segment in topology.segments)
    assert all(not node.settings for node in topology.nodes)
    for segment in topology.segments:
        assert "-".join(segment.nodes) == segment.name


def test_interfaces_count_up_on_each_node() -> None:
    ring = parse_topology("ring:3")
    assert [segment.ends for segment in ring.segments] == [
        (("n1", "eth0"), ("n2", "eth0")),
        (("n2", "eth1"), ("n3", "eth0")),
        (("n3", "eth1"), ("n1", "eth1")),
    ]


def test_lan() -> None:
    lan = parse_topology("lan:5")
    (segment,) = lan.segments
    assert (segment.name, segment.kind) == ("lan1", SegmentKind.LAN)
    assert segment.ends == tuple((f"n{number}", "eth0") for number in range(1, 6))


@pytest.mark.parametrize("text", [f"{shape}:{MAX_NODES}" for shape in ("line", "ring", "star", "lan")])
def test_largest(text: str) -> None:
    topology = parse_topology(text)
    assert len(topology.nodes) == MAX_NODES
    interfaces = [end for segment in topology.segments for end in segment.ends]
    assert len(set(interfaces)) == len(interfaces)
    assert max(len(name) for _, name in interfaces) <= 15  # IFNAMSIZ


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lin:3", "no such topology 'lin:3': use line:N, ring:N, star:N, lan:N, tree:AxD or the path of"),
        ("", "no such topology '': use"),
        ("line", "no such topology"),
        ("line:", "no such topology"),
        ("line:x", "no such topology"),
        ("line:-3", "no such topology"),
        ("line:3 ", "no such topology"),
        ("line:3\n", "no such topology"),
        ("line:\u0663", "no such topology"),
        ("line:99999999999999999999", "no such topology"),
        ("line:2x2", "no such topology 'line:2x2'"),
        ("tree:7", "no such topology 'tree:7'"),
        ("line:1", "line:1: a line has 2 to 500 nodes, choose N in that range"),
        ("ring:2", "ring:2: a ring has 3 to 500 nodes"),
        ("star:1", "star:1: a star has 2 to 500 nodes"),
        ("lan:0", "lan:0: a lan has 2 to 500 nodes"),
        ("line:501", "line:501: a line has 2 to 500 nodes"),
        ("tree:2x8", "tree:2x8: that tree has more than 500 nodes, make it smaller"),
        ("tree:1x999999999", "more than 500 nodes"),
        ("tree:999999999x999999999", "more than 500 nodes"),
        ("tree:0x2", "at least 1 child a node and 1 level"),
        ("tree:2x0", "at least 1 child a node and 1 level"),
        ("none/such.toml", "cannot read the topology file none/such.toml: No such file or directory"),
        ("/", "cannot read the topology file /: Is a directory"),
    ],
)
def test_bad_words(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_topology(text)
    assert sentence in str(caught.value)


@given(
    st.text(alphabet=st.characters(exclude_characters="/")).filter(lambda text: not text.endswith(".toml"))
)
def test_any_word_is_a_topology_or_a_usage_error(text: str) -> None:
    try:
        assert parse_topology(text).name == text
    except UsageError as error:
        assert "use line:N" in str(error)  # noqa: PT017


OFFICE = """
links = [["core", "edge-1"], ["core", "edge-2"], ["core", "edge-1"], ["core", "edge-1"]]
lans = [["edge-1", "edge-2", "desk"], ["desk", "printer"]]

[nodes.core]
registrar = true
ports = [1, 2]

[nodes.desk]
"""


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "office.toml"
    path.write_text(OFFICE)
    topology = parse_topology(str(path))
    assert topology == topology_from_toml(OFFICE, "office")
    assert names(topology) == ["core", "edge-1", "edge-2", "desk", "printer"]
    assert topology.nodes[0].settings == {"registrar": True, "ports": [1, 2]}
    assert topology.nodes[1].settings == {}
    with pytest.raises(TypeError):
        topology.nodes[0].settings["registrar"] = False  # type: ignore[index]
    assert segments(topology) == [
        "core-edge-1",
        "core-edge-2",
        "core-edge-1-2",
        "core-edge-1-3",
        "lan1",
        "lan2",
    ]
    assert topology.segments[4].ends == (("edge-1", "eth3"), ("edge-2", "eth1"), ("desk", "eth0"))
    assert topology.segments[5].ends == (("desk", "eth1"), ("printer", "eth0"))


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not readable as UTF-8"):
        parse_topology(str(path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("links = ", "topology t: not TOML"),
        ("", "topology t: it has no nodes, add links or lans"),
        ("links = []", "it has no nodes"),
        ("wires = []", "'wires' means nothing here: use links, lans and [nodes.NAME]"),
        ('links = "ab"', "links must be a list of lists"),
        ('links = ["ab"]', "'ab' in links must be a list of exactly two node names"),
        ('links = [["a"]]', "['a'] in links must be a list of exactly two node names"),
        ('links = [["a", "b", "c"]]', "must be a list of exactly two node names"),
        ("links = [[1, 2]]", "must be a list of exactly two node names"),
        ('lans = [["a"]]', "['a'] in lans must be a list of two or more node names"),
        ("lans = [[]]", "must be a list of two or more node names"),
        ('links = [["a", "a"]]', "['a', 'a'] in links names a node twice"),
        ('lans = [["a", "b", "a"]]', "in lans names a node twice"),
        ('links = [["A", "b"]]', "'A' cannot be a node's name: use 1 to 31 of a-z, 0-9 and '-'"),
        ('links = [["-a", "b"]]', "'-a' cannot be a node's name"),
        ('links = [["", "b"]]', "'' cannot be a node's name"),
        ('links = [["a\\n", "b"]]', "cannot be a node's name"),
        (f'links = [["{"a" * 32}", "b"]]', "cannot be a node's name"),
        ('links = [["a", "b"]]\n[nodes.c]', "[nodes.c] is on no link and no lan, add it to one"),
        ('links = [["a", "b"]]\nnodes = 3', "write the settings of a node as a table, [nodes.NAME]"),
        ('links = [["a", "b"]]\n[nodes]\na = 3', "write the settings of a node as a table"),
        ('links = [["a", "b"], ["c", "d"]]', "nothing joins c to a, add a link between the two parts"),
        ('links = [["a", "b"]]\nlans = [["c", "d"]]', "nothing joins c to a"),
        (f"links = {[['a', f'n{n}'] for n in range(MAX_NODES)]}", "at most 500 nodes and 5000 links"),
        (f"links = {[['a', 'b']] * 5001}", "at most 500 nodes and 5000 links"),
    ],
)
def test_bad_files(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        topology_from_toml(text, "t")
    assert sentence in str(caught.value)


def test_longest_name_and_a_lan_that_joins_all() -> None:
    topology = topology_from_toml(f'lans = [["{"a" * 31}", "0", "c"], ["0", "d"]]', "t")
    assert names(topology) == ["a" * 31, "0", "c", "d"]


NODE = st.sampled_from("abcdefgh")
PAIR = st.lists(NODE, min_size=2, max_size=2, unique=True)
GROUP = st.lists(NODE, min_size=2, max_size=5, unique=True)


@given(st.lists(PAIR, max_size=8), st.lists(GROUP, max_size=3))
def test_connected_or_refused(links: list[list[str]], lans: list[list[str]]) -> None:
    """Against the obvious: merge groups that share a node until nothing changes."""
    parts: list[set[str]] = []
    for group in (*links, *lans):
        touching = [part for part in parts if part & set(group)]
        parts = [part for part in parts if not part & set(group)]
        parts.append(set(group).union(*touching))
    try:
        topology = topology_from_toml(f"links = {links}\nlans = {lans}", "t")
    except UsageError:
        assert len(parts) != 1
        return
    assert len(parts) == 1
    assert set(names(topology)) == parts[0]
    assert len(topology.segments) == len(links) + len(lans)
    assert len(set(segments(topology))) == len(topology.segments)
    ends = [end for segment in topology.segments for end in segment.ends]
    for node in parts[0]:
        own = [interface for name, interface in ends if name == node]
        assert own == [f"eth{number}" for number in range(len(own))]


def test_find_link() -> None:
    topology = topology_from_toml(OFFICE, "office")
    for text, name in [
        ("core-edge-1", "core-edge-1"),
        ("edge-1-core", "core-edge-1"),
        ("core-edge-1-2", "core-edge-1-2"),
        ("edge-1-core-2", "core-edge-1-2"),
        ("edge-2-core", "core-edge-2"),
    ]:
        assert find_link(topology, text).name == name


def test_names_that_run_into_each_other_stay_apart() -> None:
    """A link a-b to c and a link a to b-c would have the same name."""
    topology = topology_from_toml('links = [["a-b", "c"], ["a", "b-c"], ["c", "b-c"]]', "t")
    assert segments(topology) == ["a-b-c", "a-b-c-2", "c-b-c"]
    assert find_link(topology, "a-b-c").nodes == ("a-b", "c")
    assert find_link(topology, "b-c-a-2").nodes == ("a", "b-c")


@pytest.mark.parametrize(
    ("shape", "text", "sentence"),
    [
        ("line:3", "n1-n3", "no link 'n1-n3' in the topology line:3: its links are n1-n2, n2-n3"),
        ("line:30", "n1", "n10-n11 and 19 more"),
        ("lan:3", "n1-n2", "no link 'n1-n2': the topology lan:3 has only lans"),
        ("lan:3", "lan1", "has only lans"),
    ],
)
def test_no_such_link(shape: str, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_link(parse_topology(shape), text)
    assert sentence in str(caught.value)


def test_for_people() -> None:
    topology = topology_from_toml('links = [["a", "long"], ["long", "b"]]\nlans = [["a", "b"]]', "t")
    assert describe(topology) == "t: 3 nodes, 2 links, 1 lan"
    assert describe(parse_topology("line:2")) == "line:2: 2 nodes, 1 link"
    assert draw(topology).splitlines() == [
        "   a eth0 ─── eth0 long",
        "long eth1 ─── eth0 b",
        "lan1 ═══ a eth1, b eth1",
    ]
