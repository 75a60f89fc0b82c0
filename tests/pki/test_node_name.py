"""The acp-node-name: every published and measured example, and the edges of its grammar."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from minerva.pki.errors import NodeNameError
from minerva.pki.node_name import (
    ID_ON_ACP_NODE_NAME,
    MAX_DOMAIN_LENGTH,
    MAX_NAME_LENGTH,
    AcpNodeName,
    AddressField,
)

from .certs import Ca, node_name

RFC = "fd89b714f3db00000200000064000000+area51.research@acp.example.com"
A = "fd89b714f3db00000200000064000000"

labels = st.from_regex(r"[A-Za-z]([A-Za-z0-9-]{0,8}[A-Za-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
extensions = st.lists(st.from_regex(r"[A-Za-z0-9!#$%&'*\-/=?^_`{|}~]{1,8}", fullmatch=True), max_size=3)


@st.composite
def node_names(draw: st.DrawFn) -> AcpNodeName:
    field = draw(st.sampled_from(AddressField))
    address = draw(st.ip_addresses(v=6)) if field is AddressField.ADDRESS else None
    rsub = draw(st.none() | st.just("") | domains)
    return AcpNodeName(
        domain=draw(domains),
        address=address if address is None else IPv6Address(int(address)),
        rsub=rsub,
        extensions=() if rsub is None else tuple(draw(extensions)),
        address_field=field,
    )


def test_valid_vectors(vectors: Any) -> None:
    """covers: 6.2.2-3, 6.2.2-6, 6.2.2-7"""
    assert vectors["acp_node_name"]["valid"]
    for vector in vectors["acp_node_name"]["valid"]:
        name = AcpNodeName.parse(vector["name"])
        local, _, domain = vector["name"].rpartition("@")
        assert name.domain == domain == vector["dom"]
        expected = {None: AddressField.OMITTED, "0": AddressField.ZERO}.get(
            vector["addr"], AddressField.ADDRESS
        )
        assert name.address_field is expected
        if expected is AddressField.ADDRESS:
            assert name.address == IPv6Address(bytes.fromhex(vector["addr"]))
        else:
            assert name.address is None
        assert (name.rsub or None) == vector["rsub"]
        assert (name.rsub is not None) == ("+" in local)
        assert "".join("+" + extension for extension in name.extensions) == (vector["ext"] or "")
        address, plus, rest = local.partition("+")
        assert str(name) == f"{address.lower()}{plus}{rest}@{domain}"
        assert AcpNodeName.parse(str(name)) == name
        assert AcpNodeName.decode(name.encode()) == name


def test_invalid_vectors(vectors: Any) -> None:
    assert vectors["acp_node_name"]["invalid"]
    for text in vectors["acp_node_name"]["invalid"]:
        with pytest.raises(NodeNameError):
            AcpNodeName.parse(text)


def test_san_der_vector(vectors: Any) -> None:
    """covers: 6.2.2-1"""
    vector = vectors["san_der"]
    name = AcpNodeName.parse(vector["acp_node_name"])
    extension = x509.SubjectAlternativeName([name.other_name()])
    assert extension.public_bytes().hex() == vector["subjectAltName"]
    assert vector["otherName"].endswith(name.encode().hex())
    assert AcpNodeName.decode(bytes.fromhex(vector["otherName"][-2 * len(name.encode()) :])) == name


def test_rfc_example() -> None:
    name = AcpNodeName.parse(RFC)
    assert name.address == IPv6Address("fd89:b714:f3db:0:200:0:6400:0")
    assert name.rsub == "area51.research"
    assert name.acp_domain == "acp.example.com"
    assert name.routing_subdomain == "area51.research.acp.example.com"


def test_names_are_lowered_for_comparison_and_hash() -> None:
    """covers: 6.2.2-9"""
    name = AcpNodeName.parse(f"{A}+AREA51@ACP.Example.COM")
    assert name.acp_domain == "acp.example.com"
    assert name.routing_subdomain == "area51.acp.example.com"
    assert AcpNodeName.parse(f"{A}+@ACP.example.com").routing_subdomain == "acp.example.com"


def test_hex_is_emitted_in_lower_case() -> None:
    """covers: 6.2.2-3"""
    assert str(AcpNodeName.parse(f"{A.upper()}@d")) == f"{A}@d"


def test_a_plus_without_rsub_is_kept() -> None:
    assert AcpNodeName.parse(f"{A}@d").rsub is None
    assert AcpNodeName.parse(f"{A}+@d").rsub == ""
    assert AcpNodeName.parse(f"{A}+@d") != AcpNodeName.parse(f"{A}@d")


def test_limits() -> None:
    assert AcpNodeName.parse("@" + "a" * 63).domain == "a" * 63
    with pytest.raises(NodeNameError):
        AcpNodeName.parse("@" + "a" * 64)
    longest = ".".join(["a" * 49] * 5) + ".bcd"
    assert len(longest) == MAX_DOMAIN_LENGTH
    assert AcpNodeName.parse("@" + longest).domain == longest
    with pytest.raises(NodeNameError, match="domain longer"):
        AcpNodeName.parse("@" + longest + "e")
    with pytest.raises(NodeNameError, match="domain longer"):
        AcpNodeName.parse(f"+a@{longest}")
    fitting = "++" + "e" * (MAX_NAME_LENGTH - 4) + "@d"
    assert AcpNodeName.parse(fitting).extensions == ("e" * (MAX_NAME_LENGTH - 4),)
    with pytest.raises(NodeNameError, match="characters"):
        AcpNodeName.parse("+" + fitting)


@pytest.mark.parametrize(
    "parts",
    [
        {"domain": ""},
        {"domain": "a b"},
        {"domain": "d", "address_field": AddressField.ADDRESS},
        {"domain": "d", "address": IPv6Address("::"), "address_field": AddressField.ZERO},
        {"domain": "d", "rsub": "a..b"},
        {"domain": "d", "extensions": ("e",)},
        {"domain": "d", "rsub": "", "extensions": ("",)},
        {"domain": "d", "rsub": "", "extensions": ("a+b@c",)},
    ],
)
def test_parts_that_make_no_name(parts: dict[str, Any]) -> None:
    with pytest.raises(NodeNameError):
        AcpNodeName(**{"address_field": AddressField.OMITTED, **parts})


@pytest.mark.parametrize(
    "data",
    [
        "",
        "16",
        "1600",
        "0c03407878",  # UTF8String
        "16044078",  # cut off
        "160240780a",  # something after it
        "16810240 78",  # long form where the short one fits
        "1680407800 00",  # indefinite length
        "168200024078",  # leading zero in the length
        "16024080",  # not ASCII
        "1603407800",  # NUL
        "16ff",
    ],
)
def test_der_that_is_none(data: str) -> None:
    with pytest.raises(NodeNameError):
        AcpNodeName.decode(bytes.fromhex(data))


def test_long_der_lengths() -> None:
    for size in (0x7F, 0x80, 0xFF, 0x100):
        name = AcpNodeName.parse("++" + "e" * (size - 4) + "@d")
        assert AcpNodeName.decode(name.encode()) == name
    assert name.encode()[:4].hex() == "16820100"
    with pytest.raises(NodeNameError, match="not in DER"):
        AcpNodeName.decode(bytes.fromhex("1683000100") + name.encode()[4:])


@given(node_names())
def test_round_trip(name: AcpNodeName) -> None:
    assert AcpNodeName.parse(str(name)) == name
    assert AcpNodeName.decode(name.encode()) == name


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    try:
        name = AcpNodeName.decode(data)
    except NodeNameError:
        return
    assert AcpNodeName.decode(name.encode()) == name


def test_the_old_form_in_a_published_csr_template_is_refused(fixtures: Path) -> None:
    """The examples of RFC 9908 put "rfc8994" where RFC 8994 has the address."""
    template = (fixtures / "csrattrs" / "realistic-acp.der").read_bytes()
    old_form = b"rfc8994+fd739fc23c3440112233445500000000+@acp.example.com"
    assert bytes([0x16, len(old_form)]) + old_form in template
    with pytest.raises(NodeNameError):
        AcpNodeName.decode(bytes([0x16, len(old_form)]) + old_form)
    assert AcpNodeName.parse(old_form.decode().removeprefix("rfc8994+")).address is not None


def test_of_certificate() -> None:
    """covers: 6.2.2-1"""
    ca = Ca.root()
    assert str(AcpNodeName.of(ca.node(node_name(5)))) == node_name(5)


def test_of_certificate_without_exactly_one() -> None:
    """covers: 6.2.2-1"""
    ca = Ca.root()
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.9"), AcpNodeName.parse("@d").encode())
    mail = x509.RFC822Name(node_name(5))
    with pytest.raises(NodeNameError, match="no subjectAltName"):
        AcpNodeName.of(ca.node())
    with pytest.raises(NodeNameError, match="2 acp-node-names"):
        AcpNodeName.of(ca.node(node_name(5), node_name(6)))
    for wrong in (other, mail, x509.DNSName("acp.example.com")):
        certificate = ca.node(extensions=[(x509.SubjectAlternativeName([wrong]), False)])
        with pytest.raises(NodeNameError, match="no acp-node-names"):
            AcpNodeName.of(certificate)


def test_of_certificate_with_other_names_beside() -> None:
    name = AcpNodeName.parse(node_name(5))
    names: list[x509.GeneralName] = [
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), bytes.fromhex("0500")),
        x509.DNSName("node.example.com"),
        x509.OtherName(ID_ON_ACP_NODE_NAME, name.encode()),
    ]
    assert AcpNodeName.of(Ca.root().node(extensions=[(x509.SubjectAlternativeName(names), True)])) == name


def test_of_certificate_whose_extensions_cannot_be_read() -> None:
    broken = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex("3003a00500"))
    with pytest.raises(NodeNameError, match="cannot be read"):
        AcpNodeName.of(Ca.root().node(extensions=[(broken, False)]))
