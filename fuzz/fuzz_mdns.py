"""Fuzzes multicast DNS: any message, and then what a pledge that looks for join proxies makes of it.

What decodes must come out of its own encoding again. Whatever was heard, timers end, packets are small, and
never are there more instances than there is room for.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from random import Random

from _harness import run
from minerva.brski.pledge.constants import MDNS_PORT
from minerva.brski.pledge.dns import Message, Question, Record, Server, Type, name_of
from minerva.brski.pledge.errors import DnsDecodeError
from minerva.brski.pledge.mdns import MAX_INSTANCES, MAX_SIZE, MIN_GAP, SERVICE, MdnsBrowser

_INSTANCE = (b"one", *SERVICE)
_HOST = name_of("host.local")
_RECORDS = (
    Record(SERVICE, 4500, _INSTANCE),
    Record(_INSTANCE, 120, Server(4443, _HOST), flush=True),
    Record(_HOST, 120, IPv6Address("fe80::1"), flush=True),
)
SEEDS: list[bytes] = [
    Message(True, (), _RECORDS).encode(),
    Message(True, (), tuple(Record(record.name, 0, record.data) for record in _RECORDS)).encode(),
    Message(False, (Question(SERVICE, Type.PTR),), _RECORDS[:1]).encode(),
    # The same with names that go on elsewhere.
    bytes.fromhex(
        "000084000000000100000002 0c5f6272736b692d70726f7879045f746370056c6f63616c00 000c000100001194 0006"
        "03412062c00c c02f002180010000007800 0e 00000000115b 0550726f7879c01e c04b001c80010000007800 10"
        "fe800000000000000000000000000001"
    ),
]
_STEPS = 40


def target(data: bytes) -> None:
    """Decode ``data``, and let a browser hear it again and again."""
    try:
        message = Message.decode(data)
    except DnsDecodeError:
        pass
    else:
        # Without pointers a message can be larger than one that is read.
        if len(again := message.encode()) <= 9000:
            assert Message.decode(again) == message
    now = 0.0
    browser = MdnsBrowser(1, IPv6Address("fe80::99"), random=Random(0), now=now)
    last_sent = -1.0
    for step in range(_STEPS):
        if step % 8 == 2:
            browser.receive(data, IPv6Address("fe80::1"), MDNS_PORT, now)
            browser.receive(SEEDS[0], IPv6Address("fe80::1"), MDNS_PORT, now)
        when = browser.next_timer()
        assert when is not None
        now = max(now, when)
        browser.on_timer(now)
        for datagram in browser.datagrams_to_send(now):
            assert len(datagram.data) <= MAX_SIZE
            assert last_sent < 0 or now - last_sent > MIN_GAP - 1e-6
            last_sent = now
        while browser.next_event() is not None:
            pass
        assert len(browser._instances) <= MAX_INSTANCES


if __name__ == "__main__":
    run(target, SEEDS)
