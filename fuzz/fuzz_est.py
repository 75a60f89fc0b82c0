"""Fuzzes the bodies of EST: base64, certs-only PKCS #7, and CSR attributes.

The first byte of the input chooses which.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _harness import run
from minerva.est import der
from minerva.est.bodies import certs_only, decode_base64, encode_base64, load_certs_only
from minerva.est.csrattrs import (
    EC_PUBLIC_KEY,
    EXTENSION_REQUEST_TEMPLATE,
    REQUEST_TEMPLATE,
    Attribute,
    CsrAttributes,
    for_node_name,
)
from minerva.est.errors import EstDecodeError, EstError
from minerva.pki.ca import CertificateAuthority
from minerva.pki.keys import KeyType
from minerva.pki.node_name import AcpNodeName

with tempfile.TemporaryDirectory() as _folder:
    CA = CertificateAuthority.create("fuzz.example.com", Path(_folder))
_NAME = AcpNodeName.parse("fd89b714f3db00000200000064000000+area51.research@acp.example.com")
_MESSAGE = certs_only([CA.certificate])
_TOLD = next(item for item in CsrAttributes.decode(for_node_name(_NAME)).items if isinstance(item, Attribute))
_TEMPLATE = Attribute(
    REQUEST_TEMPLATE,
    (
        der.encode(
            der.SEQUENCE,
            der.encode_integer(0),
            der.encode(der.context(0), der.encode(der.SEQUENCE, der.encode_oid(EC_PUBLIC_KEY))),
            der.encode(
                der.context(1),
                der.encode(
                    der.SEQUENCE,
                    der.encode_oid(EXTENSION_REQUEST_TEMPLATE),
                    der.encode(der.SET, *_TOLD.values),
                ),
            ),
        ),
    ),
)
SEEDS: list[bytes] = [
    b"\0" + encode_base64(_MESSAGE, wrapped=True).replace(b"\n", b"\r\n"),
    b"\0" + _MESSAGE,
    b"\1" + _MESSAGE,
    b"\1\x30\x80" + _MESSAGE[4:19] + b"\x30\x80" + _MESSAGE[23:] + b"\0\0\0\0",
    *(b"\2" + for_node_name(_NAME, key_type) for key_type in (None, *KeyType)),
    b"\2" + for_node_name(_NAME).replace(b"fd89b714f3db", b"rfc8994+0+x+"),
    b"\2" + CsrAttributes((_TEMPLATE,)).encode(),
]


def target(data: bytes) -> None:
    """Decode ``data``: nothing but an EstDecodeError may come of it, and what decodes comes out again."""
    if not data:
        return
    mode, body = data[0] % 3, data[1:]
    try:
        if mode == 0:
            content = decode_base64(body)
            assert content == body or decode_base64(encode_base64(content)) == content
        elif mode == 1:
            certificates = load_certs_only(body)
            assert set(load_certs_only(certs_only(certificates))) == set(certificates)
        else:
            _check(CsrAttributes.decode(body))
    except EstDecodeError:
        pass


def _check(told: CsrAttributes) -> None:
    again = CsrAttributes.decode(told.encode())
    assert again == told
    try:
        assert told.key_type() in KeyType
    except EstError:
        assert told.keys
    if told.node_name is not None:
        assert str(told.node_name).encode() in b"".join(each.value for each in told.extensions)


if __name__ == "__main__":
    run(target, SEEDS)
