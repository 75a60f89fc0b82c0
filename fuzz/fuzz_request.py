"""Fuzzes certificate requests: as they come, and with a signature that fits what the fuzzer made of them.

Without a signature that is good no request gets far. The second way, chosen by the first byte, takes the
rest for the value of a subjectAltName and signs a request with it.
"""

from __future__ import annotations

from cryptography.x509.oid import ExtensionOID

from _harness import run
from minerva.pki.errors import RequestError
from minerva.pki.keys import KeyType, generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import RequestedExtension, check_request, load_request, make_request

KEY = generate_key(KeyType.P256)
NAME = AcpNodeName.parse("fd89b714f3db00000200000064000000+area51.research@acp.example.com")
_TOLD = RequestedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, True, b"\x30\x03\x82\x01a")
SEEDS: list[bytes] = [
    b"\0" + make_request(KEY, NAME),
    b"\0" + make_request(KEY, None, extensions=[_TOLD]),
    b"\0" + make_request(generate_key(KeyType.RSA2048), NAME),
    b"\1" + bytes.fromhex("3050a04e06082b0601050507080aa0421640") + b"0@" + b"a" * 62,
    b"\1" + _TOLD.value,
]


def target(data: bytes) -> None:
    """Load ``data``: a request is for a name or refused, and nothing else may come of it."""
    if not data:
        return
    der = data[1:]
    if data[0] & 1:
        told = RequestedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, False, data[1:])
        der = make_request(KEY, None, extensions=[told])
    try:
        request = load_request(der)
    except RequestError:
        return
    assert request.der == der
    try:
        check_request(request, NAME)
    except RequestError:
        return
    assert request.node_name == NAME
    assert not request.other_names


if __name__ == "__main__":
    run(target, SEEDS)
