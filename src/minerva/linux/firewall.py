"""The three packet policies of a node, as nft commands. None tracks connections: no flood fills a table.

The one thing that is remembered, who has announced himself on a link, only gives an advantage, and is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network

LINK_TABLE = "minerva_link"
ACP_TABLE = "minerva_acp"

SOLICITATIONS_PER_SECOND = 20
SOLICITATION_BURST = 60
"""The neighbour table is one per machine: without this limit one port's flood starves all the others."""

ATTEMPTS_PER_SECOND = 10
ATTEMPT_BURST = 200
"""Limit on first messages of IKE (the responder's SPI is zero): every answer to a forged source takes an
entry in that same neighbour table for seconds, and a hundred times the CPU of who sends it. So few are enough
for neighbours that have not announced themselves; the burst is for a whole LAN that starts at once."""

ANNOUNCERS = 128
ANNOUNCER_SECONDS = 240
ATTEMPTS_PER_ANNOUNCER = 2
ATTEMPT_BURST_OF_ANNOUNCER = 6
"""First messages of IKE of those who have announced themselves by DULL GRASP do not count for that limit, but
have one of their own each (per second): who invents initiators by the thousand would else leave no room for the
honest newcomer. If announcers are invented too, and fill the set, all is as without it. An attempt takes two
messages under load, the second with the cookie."""

FRAGMENTS_PER_SECOND = 200
FRAGMENT_BURST = 100
"""A certificate chain with intermediates does not fit into one packet, so IKE messages may be fragmented.
The first one must pass the other rules, as far as the SPIs of IKE, or be of ESP: else the limit on first messages
would be this one, and a forged Packet Too Big would come in."""

PROXY_SYNS_PER_SECOND = 30
PROXY_SYN_BURST = 60
PROXY_SYNS_PER_PEER = 2
PROXY_SYN_BURST_OF_PEER = 8
PROXY_PEERS = 256
PROXY_PEER_SECONDS = 60
"""Limits on who connects to the join proxy: on all of a link, for the same neighbour table, and before that on
each by itself, so that one who connects without end leaves room for the others."""

PROXY_MARK = 0x4D4E5650
"""The mark of the sockets by which the join proxy reaches registrars. Only root can set one, so their packets
go where root says, whatever the process that uses them makes of them."""


PLEDGE_PORTS = range(61_000, 62_000)
"""From which TCP ports a pledge connects to join proxies; they are open for the answers, and only while it is
one."""

MARKED_IKE_PORT = 4501
"""Where the IKE messages of port 4500 are heard inside a link namespace. Nobody else sees it: the policy
rewrites 4500 to it on the way in if there is the marker of RFC 3948, and back on the way out. So port 4500 is
left to ESP, for a socket that is connected to one peer, or the kernel; each would else have to pass on the
other's packets."""

OUTER_NEIGHBOURS = 64
"""How many neighbours of a port may be reached by unique local addresses."""

_CHANNEL_IN = """        ip6 saddr {theirs} ip6 daddr {ours} udp dport 500 @th,128,64 0 jump attempt
        ip6 saddr {theirs} ip6 daddr {ours} udp dport 500 @th,128,64 0 accept
        ip6 saddr {theirs} ip6 daddr {ours} udp dport 500 @th,128,64 != 0 accept
        ip6 saddr {theirs} ip6 daddr {ours} ip6 nexthdr esp accept
"""
_CHANNEL_OUT = """        ip6 saddr {ours} ip6 daddr {theirs} udp sport 500 accept
        ip6 saddr {ours} ip6 daddr {theirs} ip6 nexthdr esp accept
"""
_UDP_IN = """        ip6 saddr {theirs} ip6 daddr {ours} udp sport 4500 udp dport 4500 jump encapsulated
"""
_UDP_OUT = f"""        ip6 saddr {{ours}} ip6 daddr {{theirs}} udp sport {MARKED_IKE_PORT} udp dport 4500 udp sport set 4500 accept
        ip6 saddr {{ours}} ip6 daddr {{theirs}} udp sport 4500 udp dport 4500 accept
"""
_MARKED_ON_PORT_500 = """        udp sport 4500 udp dport 500 counter name refused_in drop
"""
_FIRST_FRAGMENTS = """        frag frag-off 0 meta l4proto != esp counter name refused_in drop
"""
_FRAGMENTS_IN = f"""        ip6 saddr {{theirs}} ip6 daddr {{ours}} exthdr frag exists limit rate {FRAGMENTS_PER_SECOND}/second burst {FRAGMENT_BURST} packets accept
"""
_FRAGMENTS_OUT = """        ip6 saddr {ours} ip6 daddr {theirs} exthdr frag exists accept
"""


def link_policy(
    device: str,
    link_local: IPv6Address,
    *,
    udp_encapsulation: bool = False,
    ula: IPv6Address | None = None,
) -> str:
    """Return the policy of a link namespace (RFC 8994 sections 6.4 and 9.3.1).

    In come neighbour discovery, MLD, DULL GRASP, IKE and ESP to our own address, and TCP to the join proxy
    while it is open (:func:`open_proxy`); out go the same, and no ICMPv6 error ever, so that a scan finds
    nothing. What else a pledge needs is open while it is one (:func:`pledge_rules`): TCP from its own ports,
    and multicast DNS, of which only responses come in otherwise than by multicast. With ``udp_encapsulation``
    both ways between ports 4500: IKE under the same limits as on port 500, and ESP. Keepalives count as refused.
    With ``ula`` IKE and ESP to that address too, from known neighbours (:func:`outer_neighbours`).
    """
    ends = [("fe80::/10", link_local), *([("@outer_neighbours", ula)] if ula is not None else [])]

    def rules(*texts: str) -> str:
        return "".join(text.format(theirs=theirs, ours=ours) for theirs, ours in ends for text in texts)

    channels_in = rules(_CHANNEL_IN, *([_UDP_IN] if udp_encapsulation else []))
    if udp_encapsulation:
        # IKE takes what is from port 4500 for what has the marker, where the SPIs are elsewhere.
        channels_in = _MARKED_ON_PORT_500 + channels_in
    channels_out = rules(_CHANNEL_OUT, *([_UDP_OUT] if udp_encapsulation else []))
    return f"""
table inet {LINK_TABLE} {{
    counter solicitations_over_limit {{ }}
    counter attempts_over_limit {{ }}
    counter proxy_syns_over_limit {{ }}
    counter refused_in {{ }}
    counter refused_out {{ }}
    set proxy_connect {{ type inet_service; size 16; }}
    set proxy_circuits {{ type inet_service; size 16; }}
    set proxy_peers {{ type ipv6_addr; size {PROXY_PEERS}; flags dynamic,timeout; timeout {PROXY_PEER_SECONDS}s; }}
    set announcers {{ type ipv6_addr; size {ANNOUNCERS}; flags dynamic,timeout; timeout {ANNOUNCER_SECONDS}s; }}
    set attempts {{ type ipv6_addr; size {ANNOUNCERS}; flags dynamic,timeout; timeout {ANNOUNCER_SECONDS}s; }}
    set outer_neighbours {{ type ipv6_addr; size {OUTER_NEIGHBOURS}; }}
    set pledge_ports {{ type inet_service; flags interval; }}
    set pledge_mdns {{ type inet_service; size 1; }}
    chain in {{
        type filter hook prerouting priority raw; policy drop;
        iifname "lo" accept
        iifname != "{device}" drop
        icmpv6 type nd-neighbor-solicit limit rate over {SOLICITATIONS_PER_SECOND}/second burst {SOLICITATION_BURST} packets counter name solicitations_over_limit drop
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
        icmpv6 type {{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }} ip6 hoplimit 1 accept
        ip6 saddr fe80::/10 ip6 daddr ff02::13 udp dport 7017 update @announcers {{ ip6 saddr }} accept
        ip6 saddr fe80::/10 ip6 daddr ff02::13 udp dport 7017 accept
{channels_in}        ip6 saddr fe80::/10 ip6 daddr {link_local} tcp dport @proxy_connect tcp flags & (fin | syn | rst | ack) == syn jump proxy
        ip6 saddr fe80::/10 ip6 daddr {link_local} tcp dport @proxy_circuits tcp flags & (syn | ack) != syn accept
        ip6 saddr fe80::/10 ip6 daddr {link_local} tcp dport @pledge_ports tcp flags & (syn | ack) != syn accept
        ip6 saddr fe80::/10 ip6 hoplimit 255 ip6 daddr ff02::fb udp sport 5353 udp dport @pledge_mdns accept
        ip6 saddr fe80::/10 ip6 hoplimit 255 ip6 daddr {link_local} udp sport 5353 udp dport @pledge_mdns @th,80,1 1 accept
{_FIRST_FRAGMENTS}{rules(_FRAGMENTS_IN)}        counter name refused_in drop
    }}
    chain attempt {{
        ip6 saddr @announcers update @attempts {{ ip6 saddr limit rate {ATTEMPTS_PER_ANNOUNCER}/second burst {ATTEMPT_BURST_OF_ANNOUNCER} packets }} return
        ip6 saddr @outer_neighbours update @attempts {{ ip6 saddr limit rate {ATTEMPTS_PER_ANNOUNCER}/second burst {ATTEMPT_BURST_OF_ANNOUNCER} packets }} return
        limit rate over {ATTEMPTS_PER_SECOND}/second burst {ATTEMPT_BURST} packets counter name attempts_over_limit drop
    }}
    chain encapsulated {{
        @th,64,32 0 @th,160,64 0 jump attempt
        @th,64,32 0 @th,160,64 0 udp dport set {MARKED_IKE_PORT} accept
        @th,64,32 0 @th,160,64 != 0 udp dport set {MARKED_IKE_PORT} accept
        @th,64,32 != 0 accept
    }}
    chain proxy {{
        update @proxy_peers {{ ip6 saddr limit rate over {PROXY_SYNS_PER_PEER}/second burst {PROXY_SYN_BURST_OF_PEER} packets }} counter name proxy_syns_over_limit drop
        limit rate over {PROXY_SYNS_PER_SECOND}/second burst {PROXY_SYN_BURST} packets counter name proxy_syns_over_limit drop
        accept
    }}
    chain forward {{
        type filter hook forward priority raw; policy drop;
    }}
    chain out {{
        type filter hook output priority raw; policy drop;
        oifname "lo" accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report }} accept
        ip6 saddr {link_local} ip6 daddr ff02::13 udp dport 7017 accept
{channels_out}        ip6 saddr {link_local} ip6 daddr fe80::/10 tcp sport @proxy_circuits accept
{rules(_FRAGMENTS_OUT)}        ip6 saddr {link_local} ip6 daddr fe80::/10 tcp sport @pledge_ports accept
        ip6 saddr {link_local} ip6 daddr ff02::fb udp dport 5353 udp sport @pledge_mdns accept
        counter name refused_out drop
    }}
}}
"""


def pledge_rules(*, connect: bool, mdns: bool) -> str:
    """Return what opens a link namespace for a pledge, or closes it: for its connections, for multicast DNS."""
    ports = [f"{PLEDGE_PORTS.start}-{PLEDGE_PORTS.stop - 1}"] if connect else []
    return _replace_set(LINK_TABLE, "pledge_ports", ports) + _replace_set(
        LINK_TABLE, "pledge_mdns", ["5353"] if mdns else []
    )


def outer_neighbours(addresses: Iterable[IPv6Address]) -> str:
    """Return what lets in IKE and ESP of neighbours with these unique local addresses, and of no others."""
    return _replace_set(LINK_TABLE, "outer_neighbours", map(str, addresses))


def open_proxy(connect: Iterable[int], circuits: Iterable[int]) -> str:
    """Return what opens TCP ports of a link namespace to strangers, and closes all others.

    New connections are let in to the ports ``connect``; those that there are may go on there and on the ports
    ``circuits``.
    """
    connect = set(connect)
    return _replace_set(LINK_TABLE, "proxy_connect", map(str, connect)) + _replace_set(
        LINK_TABLE, "proxy_circuits", map(str, connect.union(circuits))
    )


def proxy_targets(targets: Iterable[tuple[IPv6Address, int]]) -> str:
    """Return what lets the join proxy's sockets speak to these addresses and TCP ports, and to no others."""
    return _replace_set(ACP_TABLE, "registrars", (f"{address} . {port}" for address, port in targets))


def _replace_set(table: str, name: str, elements: Iterable[str]) -> str:
    members = ", ".join(sorted(elements))
    added = f"add element inet {table} {name} {{ {members} }}\n" if members else ""
    return f"flush set inet {table} {name}\n{added}"


def acp_policy(host_side: str, host_address: IPv6Address, address: IPv6Address) -> str:
    """Return the policy of the ACP namespace: from the host comes only its own V=1 address, and ND.

    Without it the host could speak for any node of the ACP, and forward for others. What is sent inside is from
    the node's own ``address``: a program that was given a socket could name any other (IPV6_FREEBIND). The join
    proxy's sockets, which belong to a process that strangers speak to, reach registrars (:func:`proxy_targets`)
    only.
    """
    return f"""
table inet {ACP_TABLE} {{
    counter refused_from_host {{ }}
    counter refused_from_proxy {{ }}
    counter refused_source {{ }}
    set registrars {{ type ipv6_addr . inet_service; size 64; }}
    chain out {{
        type filter hook output priority raw; policy accept;
        oifname != "lo" meta l4proto udp ip6 saddr != {address} counter name refused_source drop
        oifname != "lo" meta l4proto tcp ip6 saddr != {{ {address}, fe80::/10 }} counter name refused_source drop
        meta mark != {PROXY_MARK:#x} accept
        meta l4proto tcp ip6 daddr . tcp dport @registrars accept
        counter name refused_from_proxy drop
    }}
    chain in {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "{host_side}" accept
        ip6 saddr {host_address} accept
        ip6 saddr fe80::/10 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
        icmpv6 type {{ mld-listener-report, mld2-listener-report }} accept
        counter name refused_from_host drop
    }}
    chain to_host {{
        type filter hook postrouting priority raw; policy accept;
        oifname "{host_side}" ip6 daddr != {{ {host_address}, fe80::/10, ff02::/16 }} drop
    }}
}}
"""


def guard_table(tag: str) -> str:
    """Return the name of the guard table of the node with the mark ``tag``."""
    return f"minerva_{tag}"


def guard_policy(tag: str, prefix: IPv6Network, device: str) -> str:
    """Return the host's guard: the ACP's ``prefix`` exists only behind ``device``, whatever the host does.

    Linux is a weak host and may be a router; so without this a neighbour on any interface reaches the V=1
    address, and a forwarding host lets it into the ACP. The table is owned by whoever applies it.
    """
    return f"""
table inet {guard_table(tag)} {{
    flags owner
    counter refused_in {{ }}
    counter refused_forward {{ }}
    counter refused_out {{ }}
    chain in {{
        type filter hook prerouting priority raw; policy accept;
        iifname {{ "{device}", "lo" }} accept
        ip6 daddr {prefix} counter name refused_in drop
        ip6 saddr {prefix} counter name refused_in drop
    }}
    chain forward {{
        type filter hook forward priority raw; policy accept;
        iifname "{device}" counter name refused_forward drop
        oifname "{device}" counter name refused_forward drop
        ip6 daddr {prefix} counter name refused_forward drop
        ip6 saddr {prefix} counter name refused_forward drop
    }}
    chain out {{
        type filter hook output priority raw; policy accept;
        oifname {{ "{device}", "lo" }} accept
        ip6 daddr {prefix} counter name refused_out drop
        ip6 saddr {prefix} counter name refused_out drop
    }}
}}
"""
