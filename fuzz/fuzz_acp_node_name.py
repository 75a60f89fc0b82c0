"""Fuzzes the acp-node-name: its DER, its text, and the addresses in it."""

from __future__ import annotations

from _harness import run
from minerva.pki.address import AcpAddress, decider_key
from minerva.pki.errors import AddressError, NodeNameError
from minerva.pki.node_name import AcpNodeName

_TEXTS = (
    "fd89b714f3db00000200000064000000+area51.research@acp.example.com",
    "FD89B714F3DB42000000640080010000+@ACP.Example.com",
    "0+a.b+ext1+ext2@acp.example.com",
    "++e!#$%&'*-/=?^_`{|}~@d",
    "@d",
)
SEEDS: list[bytes] = [
    *(text.encode() for text in _TEXTS),
    *(AcpNodeName.parse(text).encode() for text in _TEXTS),
    AcpNodeName.parse("++" + "e" * 300 + "@d").encode(),
]


def target(data: bytes) -> None:
    """Decode ``data`` as DER and as text; what decodes must come out of its own encoding again."""
    try:
        name = AcpNodeName.decode(data)
    except NodeNameError:
        pass
    else:
        _check(name)
        # Only the case of the address is not kept.
        assert name.encode().lower() == data.lower()
    try:
        name = AcpNodeName.parse(data.decode("latin-1"))
    except NodeNameError:
        return
    _check(name)


def _check(name: AcpNodeName) -> None:
    assert AcpNodeName.parse(str(name)) == name
    assert AcpNodeName.decode(name.encode()) == name
    assert name.routing_subdomain.endswith(name.acp_domain)
    if name.address is None:
        return
    try:
        address = AcpAddress(name.address)
    except AddressError:
        return
    assert address.address in address.prefix
    assert address.with_v(0).prefix == address.prefix
    assert decider_key(address)[0] < 1 << address.node_id_bits


if __name__ == "__main__":
    run(target, SEEDS)
