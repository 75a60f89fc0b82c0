"""IKE_SA_INIT and IKE_AUTH between two endpoints driven by hand, and what can be wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.ikev2 import initiator as initiator_module
from minerva.ikev2 import proposals
from minerva.ikev2 import responder as responder_module
from minerva.ikev2.child import ChildAnswer
from minerva.ikev2.config import Config
from minerva.ikev2.constants import (
    IKE_PORT,
    AuthMethod,
    CertEncoding,
    DhGroup,
    EncryptionId,
    ExchangeType,
    Flag,
    HashAlgorithm,
    IdType,
    NotifyType,
    PrfId,
)
from minerva.ikev2.endpoint import (
    Closed,
    Established,
    Failed,
    IkeRekeyed,
    KeyLog,
    SignatureNeeded,
    State,
    Transition,
)
from minerva.ikev2.errors import IkeUsageError
from minerva.ikev2.keylog import ikev2_decryption_table_line
from minerva.ikev2.message import (
    Header,
    decode_message,
    decode_payloads,
    encode_message,
    find_notify,
    required,
)
from minerva.ikev2.payloads import (
    Authentication,
    Certificate,
    CertificateRequest,
    IdentificationInitiator,
    IdentificationResponder,
    KeyExchange,
    Notify,
    Opaque,
    Payload,
)
from minerva.ikev2.proposals import Proposal, SecurityAssociation, Transform
from minerva.ikev2.traffic import (
    ALL_IPV6,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
)
from minerva.pki.errors import Rule
from tests.ikev2.nodes import (
    ISSUER,
    MEMBER_A,
    MEMBER_B,
    OTHER_ROOT,
    ROOT,
    A,
    B,
    Hand,
    Party,
    check_match,
    failures,
    hands,
    party,
    recorded,
    sign,
)
from tests.pki import certs

ONLY = {group: Config(groups=(group,)) for group in Config().groups}


def up(a: Hand, b: Hand) -> tuple[Established, Established]:
    (of_a,), (of_b,) = a.of(Established), b.of(Established)
    check_match(of_a, of_b)
    return of_a, of_b


def inside(sender: Hand, message: bytes) -> tuple[Payload, ...]:
    """What ``sender`` encrypted into ``message``, the newest SA being that of the message."""
    sa = list(sender.endpoint._sas.values())[-1]
    protection = sa._protection
    assert protection is not None
    # AES-GCM is its own inverse for the owner of the key, so the sender can open what it sealed.
    swapped = type(protection).__new__(type(protection))
    swapped._cipher_in, swapped._salt_in = protection._cipher_out, protection._salt_out
    return decode_payloads(*swapped.open(Header.decode(message), message))


def run(a: Hand, b: Hand, now: float = 0.0) -> None:
    """Have ``a`` initiate and carry every message until there is none."""
    a.endpoint.initiate(b.address, IKE_PORT, now)
    carry(a, b, now)


def carry(a: Hand, b: Hand, now: float = 0.0) -> None:
    for _ in range(20):
        from_a, from_b = a.out(now), b.out(now)
        if not from_a and not from_b:
            return
        for datagram in from_a:
            b.endpoint.receive(datagram.data, a.address, IKE_PORT, now)
        for datagram in from_b:
            a.endpoint.receive(datagram.data, b.address, IKE_PORT, now)
    pytest.fail("no end of messages")


# --- success ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", list(ONLY))
def test_two_members(group: DhGroup) -> None:
    """covers: 6.8.2-1, 6.8.2-3, 6.8.3-1, 6.8.3.1.2-7"""
    a, b = hands(ONLY[group], ONLY[group])
    init, init_response, _, _ = recorded(a, b)
    of_a, of_b = up(a, b)
    assert of_a.initiator
    assert (of_a.address, of_b.address) == (B, A)
    assert of_a.member.address == MEMBER_B.identity.address
    assert of_b.member.address == MEMBER_A.identity.address
    assert of_a.member.expires == certs.NOW + 30 * certs.DAY
    header, payloads = decode_message(init)
    assert (header.exchange, header.flags, header.message_id) == (34, Flag.INITIATOR, 0)
    assert required(payloads, KeyExchange).group == group
    assert find_notify(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS) is not None
    header, payloads = decode_message(init_response)
    assert (header.exchange, header.flags, header.message_id) == (34, Flag.RESPONSE, 0)
    assert find_notify(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS) is not None


def test_states_are_reported() -> None:
    a, b = hands()
    recorded(a, b)
    assert [event.after for event in a.of(Transition)] == [
        State.INIT_SIGNING,
        State.AUTH_SENT,
        State.ESTABLISHED,
    ]
    assert [event.after for event in b.of(Transition)] == [State.AUTH_SIGNING, State.ESTABLISHED]
    (status,) = b.endpoint.status()
    assert (status.address, status.state, status.initiator) == (A, State.ESTABLISHED, False)


def test_what_is_in_ike_auth() -> None:
    """covers: 6.8.2-2, 6.8.2-6, 6.8.3.1-3, 6.8.3.1.2-2, 6.8.3.1.2-5, 6.8.3.1.2-6, 6.2.4-5"""
    a, b = hands()
    _, init_response, request, response = recorded(a, b)
    chain = (MEMBER_A.identity.certificate, ISSUER.certificate, ROOT.certificate)
    payloads = inside(a, request)
    identification = required(payloads, IdentificationInitiator)
    assert identification.id_type == IdType.ID_IPV6_ADDR
    assert identification.data == MEMBER_A.identity.address.address.packed
    assert [p for p in payloads if isinstance(p, Certificate)] == [
        Certificate(CertEncoding.X509_SIGNATURE, certificate.public_bytes(Encoding.DER))
        for certificate in chain
    ]
    assert len(required(payloads, CertificateRequest).authorities) == 1
    assert required(payloads, CertificateRequest) == required(
        decode_message(init_response)[1], CertificateRequest
    )
    assert required(payloads, Authentication).method == AuthMethod.DIGITAL_SIGNATURE
    assert required(payloads, TrafficSelectorsInitiator).selectors == (ALL_IPV6,)
    assert required(payloads, TrafficSelectorsResponder).selectors == (ALL_IPV6,)
    assert find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is None
    answer = inside(b, response)
    assert required(answer, IdentificationResponder).data == MEMBER_B.identity.address.address.packed
    assert required(answer, TrafficSelectorsInitiator).selectors == (ALL_IPV6,)
    assert [p.data for p in answer if isinstance(p, Certificate)][1:] == [
        p.data for p in payloads if isinstance(p, Certificate)
    ][1:]


def test_the_trust_anchor_can_be_kept_back() -> None:
    """covers: 6.8.2-6"""
    silent = Config(send_trust_anchor=False)
    a, b = hands(silent, silent)
    messages = recorded(a, b)
    up(a, b)
    for sender, message in ((a, messages[2]), (b, messages[3])):
        sent = [p.data for p in inside(sender, message) if isinstance(p, Certificate)]
        assert len(sent) == 2
        assert ROOT.certificate.public_bytes(Encoding.DER) not in sent


def test_a_node_right_under_its_root_sends_the_root_once() -> None:
    a = Hand(party(1, ca=ROOT), A)
    b = Hand(MEMBER_B, B)
    _, _, request, _ = recorded(a, b)
    up(a, b)
    assert len([p for p in inside(a, request) if isinstance(p, Certificate)]) == 2


@pytest.mark.parametrize("kind", ["p384", "p521"])
def test_stronger_keys_sign_over_stronger_hashes(kind: str) -> None:
    """covers: 6.8.3.1.2-6"""
    a, b = Hand(party(1, kind=kind), A), Hand(MEMBER_B, B)
    recorded(a, b)
    up(a, b)
    (needed,) = a.of(SignatureNeeded)
    assert needed.hash == {"p384": HashAlgorithm.SHA2_384, "p521": HashAlgorithm.SHA2_512}[kind]


@pytest.mark.parametrize("prf", list(PrfId))
def test_every_prf(prf: PrfId) -> None:
    a, b = hands(Config(prfs=(prf,)))
    recorded(a, b)
    up(a, b)
    (needed,) = a.of(SignatureNeeded)
    assert len(needed.maced_id) == {5: 32, 6: 48, 7: 64}[prf]


def test_two_trust_anchors_and_two_intermediates() -> None:
    """covers: 6.2.4-4"""
    lower = ISSUER.ca("Lower", kind="p256/lower")
    a = Hand(party(1, ca=lower, anchors=(ROOT, OTHER_ROOT)), A)
    b = Hand(party(2, ca=OTHER_ROOT, anchors=(OTHER_ROOT, ROOT)), B)
    _, init_response, _, _ = recorded(a, b)
    up(a, b)
    assert len(required(decode_message(init_response)[1], CertificateRequest).authorities) == 2


# --- negotiation -----------------------------------------------------------------------------------------


def test_another_group_than_the_first_one() -> None:
    """covers: 6.8.3.1.2-7"""
    a, b = hands(Config(groups=(DhGroup.CURVE25519, DhGroup.ECP_256)), ONLY[DhGroup.ECP_256])
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (first,) = a.out()
    (answer,) = b.take(first.data, A)
    header, payloads = decode_message(answer)
    assert header.spi_r == bytes(8)
    assert payloads == (Notify(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x13"),)
    assert not b.endpoint._sas, "no state for a request that was refused"
    (second,) = a.take(answer, B)
    old, new = decode_message(first.data)[1], decode_message(second)[1]
    assert required(old, SecurityAssociation) == required(new, SecurityAssociation)
    assert required(new, KeyExchange).group == DhGroup.ECP_256
    carried = b.take(second, A)
    a.endpoint.receive(carried[0], B, IKE_PORT, 0.0)
    carry(a, b)
    up(a, b)


def test_forged_group_changes_end() -> None:
    """Each group is tried once, and only one that we offered; the genuine response still counts."""
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header = decode_message(init.data)[0]
    forged = Header(header.spi_i, bytes(8), ExchangeType.IKE_SA_INIT, Flag.RESPONSE, 0)
    sent = 0
    for _ in range(50):
        for group in (5, 14, 19, 20, 21, 31, 999):
            notify = Notify(NotifyType.INVALID_KE_PAYLOAD, group.to_bytes(2))
            sent += len(a.take(encode_message(forged, (notify,)), B))
    assert sent == len(Config().groups) - 1
    (response,) = b.take(init.data, A)
    (request,) = a.take(response, B)
    (response,) = b.take(request, A)
    a.take(response, B)
    up(a, b)


def test_two_versions_of_the_first_request_that_are_both_answered() -> None:
    """The peer then holds two SAs, of which we take one and delete the other."""
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (first,) = a.out()
    header = Header(decode_message(first.data)[0].spi_i, bytes(8), 34, Flag.RESPONSE, 0)
    forged = Notify(NotifyType.INVALID_KE_PAYLOAD, DhGroup.CURVE25519.to_bytes(2))
    (second,) = a.take(encode_message(header, (forged,)), B)
    responses = [*b.take(first.data, A), *b.take(second, A)]
    requests = [message for response in responses for message in a.take(response, B)]
    answers = [message for request in requests for message in b.take(request, A)]
    assert len(b.of(Established)) == 2
    deletes = [message for answer in answers for message in a.take(answer, B)]
    assert len(a.of(Established)) == len(deletes) == 1
    for delete in deletes:
        b.take(delete, A)
    (closed,) = b.of(Closed)
    (status,) = b.endpoint.status()
    assert closed.sa != status.sa
    kept = next(event for event in b.of(Established) if event.sa == status.sa)
    check_match(a.of(Established)[0], kept)


def test_no_common_group_fails_with_a_hint_but_not_at_once() -> None:
    a, b = hands(ONLY[DhGroup.CURVE25519], ONLY[DhGroup.ECP_256])
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    carry(a, b)
    assert not failures(a), "the refusal is not authenticated"
    timer = a.endpoint.next_timer()
    assert timer is not None
    a.endpoint.on_timer(0.5)
    carry(a, b, 0.5)
    a.endpoint.on_timer(2.6)
    a.out(2.6)
    (failed,) = failures(a)
    assert "NO_PROPOSAL_CHOSEN" in failed.reason
    assert "CURVE25519" in failed.reason
    assert failed.initiator
    assert not a.endpoint._sas
    assert a.endpoint.next_timer() is None
    assert b.endpoint.counters["IKE_SA_INIT refused: NO_PROPOSAL_CHOSEN"] == 2
    assert not b.endpoint._sas


def test_a_cookie_is_returned_first_and_all_else_unchanged() -> None:
    a, b = hands(config_b=Config(cookie_threshold=0))
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (first,) = a.out()
    (answer,) = b.take(first.data, A)
    (notify,) = decode_message(answer)[1]
    assert isinstance(notify, Notify)
    assert notify.notify_type == NotifyType.COOKIE
    assert not b.endpoint._sas, "a cookie costs no state"
    (second,) = a.take(answer, B)
    assert decode_message(second)[1] == (notify, *decode_message(first.data)[1])
    (response,) = b.take(second, A)
    (request,) = a.take(response, B)
    (response,) = b.take(request, A)
    a.take(response, B)
    up(a, b)
    (needed,) = a.of(SignatureNeeded)
    assert needed.message == second, "the latest version of the message is signed"


def test_cookie_and_then_another_group() -> None:
    """RFC 7296 section 2.6.1: the cookie is in all further retries."""
    a, b = hands(
        Config(groups=(DhGroup.CURVE25519, DhGroup.ECP_256)),
        Config(groups=(DhGroup.ECP_256,), cookie_threshold=0),
    )
    run(a, b)
    up(a, b)
    assert b.endpoint.counters["cookie demanded"] == 1


def test_one_cookie_after_the_other_is_not_followed_for_ever() -> None:
    a, _ = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header = Header(decode_message(init.data)[0].spi_i, bytes(8), 34, Flag.RESPONSE, 0)
    sent = 0
    for number in range(50):
        sent += len(a.take(encode_message(header, (Notify(NotifyType.COOKIE, bytes((number,))),)), B))
    assert sent == Config().cookie_retries
    for cookie in (b"", bytes(65)):
        assert not a.take(encode_message(header, (Notify(NotifyType.COOKIE, cookie),)), B)


def test_critical_payloads_in_the_first_message() -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header, payloads = decode_message(init.data)
    (answer,) = b.take(encode_message(header, (*payloads, Opaque(200, b"?", critical=True))), A)
    assert decode_message(answer)[1] == (Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc8"),)
    assert not b.endpoint._sas
    (answer,) = b.take(encode_message(header, (*payloads, Opaque(200, b"?"))), A)
    assert decode_message(answer)[0].spi_r != bytes(8), "an unknown payload that is not critical is skipped"


@pytest.mark.parametrize(("version", "answered"), [(0x30, True), (0xF0, True), (0x10, False), (0x21, False)])
def test_other_versions(version: int, answered: bool) -> None:
    _, b = hands()
    data = Header(b"i" * 8, bytes(8), 34, Flag.INITIATOR, 7, 33, version).encode(33, 28)
    answers = b.take(data, A)
    assert len(answers) == answered
    for answer in answers:
        header, payloads = decode_message(answer)
        assert header == Header(b"i" * 8, bytes(8), 34, Flag.RESPONSE, 7, 41)
        assert payloads == (Notify(NotifyType.INVALID_MAJOR_VERSION),)
    response = Header(b"i" * 8, b"r" * 8, 34, Flag.RESPONSE, 7, 33, version).encode(33, 28)
    assert not b.take(response, A), "a response is never answered"


def test_errors_are_answered_at_a_limited_rate() -> None:
    _, b = hands()
    data = Header(b"i" * 8, bytes(8), 34, Flag.INITIATOR, 7, 33, 0x30).encode(33, 28)
    config = Config()
    assert sum(len(b.take(data, A, 100.0)) for _ in range(1000)) == config.error_burst
    assert sum(len(b.take(data, A, 101.0)) for _ in range(1000)) == config.error_rate


# --- authentication --------------------------------------------------------------------------------------

SOON = certs.NOW - certs.DAY + timedelta(hours=1)

STRANGERS: dict[str, tuple[Party, Rule | None, str]] = {
    "of another CA": (party(3, ca=OTHER_ROOT, anchors=(ROOT,)), Rule.PATH, "no path to a trust anchor"),
    "expired": (party(3, end=SOON), Rule.PATH, "expired"),
    "not valid yet": (party(3, start=certs.NOW + certs.DAY), Rule.PATH, "not valid before"),
    "of another domain": (
        party(3, name=certs.node_name(3, domain="other.example.com")),
        Rule.DOMAIN,
        "ours is acp.example.com",
    ),
    "without an address": (
        party(3, name=f"@{certs.DOMAIN}", identity_name=certs.node_name(3)),
        Rule.ADDRESS,
        "no ACP address",
    ),
    "of another key": (
        Party(party(3).identity, certs.key("p256/another")),
        Rule.PROOF_OF_POSSESSION,
        "signature is wrong",
    ),
    "with another ID": (
        party(3, identity_name=certs.node_name(4)),
        None,
        "the peer's ID is fd73:9fc2:3c34:0:200:0:6400:8, but its certificate is for",
    ),
}


@pytest.mark.parametrize("stranger", list(STRANGERS))
@pytest.mark.parametrize("begins", ["stranger", "member"])
def test_strangers_do_not_get_in(stranger: str, begins: str) -> None:
    """Whoever begins: the one that checks names the rule, and the other one learns that it is refused.

    covers: 6.2.3-1, 6.8.2-1, 6.8.3.1.2-5
    """
    who, rule, why = STRANGERS[stranger]
    # The stranger believes everybody, so that it is the member alone who refuses.
    trusting = Party(party(3, anchors=(ROOT, OTHER_ROOT)).identity, None)
    s, m = Hand(who, A), Hand(MEMBER_B, B)
    s.endpoint._context.authenticate = trusting.authenticate
    run(*((s, m) if begins == "stranger" else (m, s)))
    assert not m.of(Established)
    (failed,) = failures(m)
    assert failed.rule == rule
    assert why in failed.reason
    assert failed.address == A
    assert failed.initiator is (begins == "member")
    assert failed.peer is not None
    assert failed.peer.subject == "CN=node"
    assert failed.peer.issuer == ("CN=Other root" if stranger == "of another CA" else "CN=Issuer")
    if begins == "stranger":
        (learned,) = failures(s)
        assert learned.reason.startswith("the peer refused us: AUTHENTICATION_FAILED; its log tells")
        assert learned.initiator
    else:
        # The responder was already done when the initiator looked at its certificate.
        (closed,) = s.of(Closed)
        assert closed.reason.startswith("the peer refused us: AUTHENTICATION_FAILED; its log tells")
        assert closed.by_peer
    for hand in (s, m):
        hand.endpoint.on_timer(100.0)
        assert not hand.endpoint._sas


def test_the_anchor_that_a_stranger_sends_is_shown() -> None:
    """covers: 6.8.2-6, 6.8.3.1.2-4"""
    foreign = Hand(party(3, ca=OTHER_ROOT, anchors=(OTHER_ROOT,)), A)
    member = Hand(MEMBER_B, B)
    run(foreign, member)
    (failed,) = failures(member)
    assert failed.peer is not None
    assert failed.peer.anchors == ("CN=Other root",), "sent although our CERTREQ does not name it"


def test_a_peer_with_address_zero() -> None:
    """Its ID need only be of the right type: there is nothing to compare it with."""
    zero = Hand(party(3, name=f"0@{certs.DOMAIN}", identity_name=certs.node_name(9)), A)
    member = Hand(MEMBER_B, B)
    run(zero, member)
    _, established = up(zero, member)
    assert established.member.address is None
    wrong = Hand(party(3, name=f"0@{certs.DOMAIN}", identity_name=certs.node_name(9)), A)
    credentials = wrong.endpoint._context.credentials
    credentials.id_i = IdentificationInitiator(IdType.ID_FQDN, b"zero")
    member = Hand(MEMBER_B, B)
    run(wrong, member)
    (failed,) = failures(member)
    assert "RFC 8994 wants ID_IPV6_ADDR" in failed.reason


def change_request(monkeypatch: pytest.MonkeyPatch, hand: Hand, change: Any) -> None:
    """Have ``hand`` send what ``change`` makes of the payloads of each message that it encrypts."""
    from minerva.ikev2 import message

    genuine: Any = message.Protection.seal_all

    def seal_all(self: Any, header: Header, payloads: Sequence[Payload]) -> tuple[bytes, ...]:
        sa = next(iter(hand.endpoint._sas.values()), None)
        spis = (sa._spi_i, sa.spi) if sa is not None else ()
        mine = header.spi_i in spis and header.from_initiator
        return tuple(genuine(self, header, change(tuple(payloads)) if mine else payloads))

    monkeypatch.setattr(message.Protection, "seal_all", seal_all)


def without(kind: type[Any]) -> Any:
    return lambda payloads: tuple(p for p in payloads if not isinstance(p, kind))


@pytest.mark.parametrize(
    ("change", "notify", "why"),
    [
        (without(Certificate), NotifyType.AUTHENTICATION_FAILED, "sent 0 X.509 certificates"),
        (without(Authentication), NotifyType.AUTHENTICATION_FAILED, "EAP"),
        (without(IdentificationInitiator), NotifyType.INVALID_SYNTAX, "no IdentificationInitiator"),
        (
            lambda p: (*p, IdentificationInitiator(5, bytes(16))),
            NotifyType.INVALID_SYNTAX,
            "2 IdentificationInitiator",
        ),
        (
            lambda p: (*p, Opaque(200, b"", critical=True)),
            NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
            "critical payload of type 200",
        ),
        (
            lambda p: (Certificate(4, b"\x30\x03junk"), *p),
            NotifyType.AUTHENTICATION_FAILED,
            "a certificate of the peer cannot be read",
        ),
        (lambda p: (*[Certificate(4, b"")] * 20, *p), NotifyType.AUTHENTICATION_FAILED, "23 X.509"),
        (lambda p: (Opaque(40, b"short"), *p), NotifyType.INVALID_SYNTAX, "malformed"),
    ],
)
def test_ike_auth_requests_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, change: Any, notify: NotifyType, why: str
) -> None:
    a, b = hands()
    change_request(monkeypatch, a, change)
    run(a, b)
    (failed,) = failures(b)
    assert why in failed.reason
    (learned,) = failures(a)
    assert notify.name in learned.reason
    assert not a.of(Established)
    assert not b.of(Established)


@pytest.mark.parametrize(
    ("payloads", "why"),
    [
        ((Opaque(40, b"short nonce"),), "malformed IKE_AUTH response"),
        ((Opaque(200, b"", critical=True),), "critical payload in a response"),
        ((), "no IdentificationResponder payload"),
        ((Notify(9_999),), "refused us: notify type 9999"),
    ],
)
def test_ike_auth_responses_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, payloads: tuple[Payload, ...], why: str
) -> None:
    a, b = hands()
    monkeypatch.setattr(b.endpoint, "signed", lambda number, _signature, _now: respond(b, number, payloads))
    run(a, b)
    (failed,) = failures(a)
    assert why in failed.reason
    assert failed.peer is None
    a.endpoint.on_timer(50.0)
    assert not a.endpoint._sas


def respond(hand: Hand, number: int, payloads: tuple[Payload, ...]) -> None:
    """Answer the newest request of an SA with these payloads, whatever the SA would say."""
    hand.endpoint._sas[number]._respond(payloads)


def test_first_responses_with_critical_payloads_are_not_taken() -> None:
    """RFC 7296 section 2.5: a response has none. The genuine one may still come."""
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    header, payloads = decode_message(response)
    assert a.take(encode_message(header, (*payloads, Opaque(200, b"", critical=True))), B) == []
    (request,) = a.take(response, B)
    late = Header(header.spi_i, bytes(8), 34, Flag.RESPONSE, 0)
    assert a.take(encode_message(late, (Notify(NotifyType.COOKIE, b"c"),)), B) == []
    assert a.take(encode_message(late, (Notify(NotifyType.NO_PROPOSAL_CHOSEN),)), B) == []
    (answer,) = b.take(request, A)
    a.take(answer, B)
    up(a, b)


def test_the_signers_answer_for_a_candidate_that_is_gone() -> None:
    """Two answers are followed up; the signer is slow; what comes too late does no harm."""
    a, b = hands()
    number = a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    header, payloads = decode_message(response)
    forged = Header(header.spi_i, b"forged!!", 34, Flag.RESPONSE, 0)
    a.endpoint.receive(encode_message(forged, payloads), B, IKE_PORT, 0.0)
    a.endpoint.receive(response, B, IKE_PORT, 9.0)
    a.endpoint.on_timer(10.1)
    a.endpoint.signed(number, b"too late", 10.2)
    assert a.endpoint.datagrams_to_send(10.2) == []
    requested = []
    while (event := a.endpoint.next_event()) is not None:
        requested += [event] if isinstance(event, SignatureNeeded) else []
    a.endpoint.signed(number, sign(MEMBER_A.key, requested[-1]), 10.3)
    (request,) = a.out(10.3)
    b.endpoint.on_timer(9.0)
    (answer,) = b.take(request.data, A, 9.5)
    a.take(answer, B, 10.4)
    up(a, b)
    a.endpoint.signed(number, b"nobody asked", 10.5)
    assert len(requested) == 2


def test_a_forger_that_is_refused_leaves_the_genuine_peer() -> None:
    """Somebody without a certificate of the domain answers first, all the way: only he is struck."""
    a, b = hands()
    forger = Hand(party(3, ca=OTHER_ROOT, anchors=(ROOT,)), B)
    forger.endpoint._context.authenticate = party(3, anchors=(ROOT,)).authenticate
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    requests = []
    for responder in (forger, b):
        (response,) = responder.take(init.data, A)
        requests += [(responder, message) for message in a.take(response, B)]
    for responder, request in requests:
        (answer,) = responder.take(request, A)
        a.take(answer, B)
    assert not failures(a)
    assert a.of(Established)[0].member.address == MEMBER_B.identity.address
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_unknown_payloads_in_ike_auth_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = hands()
    extra = (
        Opaque(200, b"x"),
        Opaque(47, b"cp", critical=True),
        Certificate(12, b"hash and url"),
        Notify(16_999),
        Notify(9_999),
        Notify(NotifyType.USE_TRANSPORT_MODE),
    )
    change_request(monkeypatch, a, lambda payloads: (*extra, *payloads))
    _, _, _, response = recorded(a, b)
    up(a, b)
    assert find_notify(inside(b, response), NotifyType.USE_TRANSPORT_MODE) is None, "tunnel mode it is"


def test_own_signer_refuses() -> None:
    a, b = hands()
    number = a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    a.endpoint.receive(response, B, IKE_PORT, 0.0)
    a.endpoint.signed(number, None, 0.0)
    assert a.endpoint.datagrams_to_send(0.0) == []
    events = [a.endpoint.next_event() for _ in range(4)]
    assert any(isinstance(event, Failed) and "signer" in event.reason for event in events)
    a.endpoint.signed(number, b"late", 0.0)


def test_the_responders_signer_refuses() -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    (request,) = a.take(response, B)
    b.endpoint.receive(request, A, IKE_PORT, 0.0)
    b.endpoint.receive(request, A, IKE_PORT, 0.0)
    assert b.endpoint.counters["repeated request while its response is made"] == 1
    while (event := b.endpoint.next_event()) is not None:
        b.events.append(event)
        if isinstance(event, SignatureNeeded):
            b.endpoint.signed(event.sa, None, 0.0)
    (refusal,) = b.endpoint.datagrams_to_send(0.0)
    a.take(refusal.data, B)
    assert "signer" in failures(b)[0].reason
    assert "AUTHENTICATION_FAILED" in failures(a)[0].reason


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_signer_that_does_not_answer(side: str) -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    if side == "initiator":
        silent = a
        a.endpoint.receive(response, B, IKE_PORT, 0.0)
    else:
        silent = b
        (request,) = a.take(response, B)
        b.endpoint.receive(request, A, IKE_PORT, 0.0)
    silent.endpoint.on_timer(9.9)
    assert silent.endpoint.status()
    silent.endpoint.on_timer(10.1)
    events: list[Any] = []
    while (event := silent.endpoint.next_event()) is not None:
        events.append(event)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert "sign" in failed.reason
    assert not silent.endpoint._sas


def test_we_cannot_be_anyone_with_a_key_that_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minerva.pki.keys.MIN_RSA_BITS", 3000)
    rsa = party(1, kind="rsa2048")
    with pytest.raises(IkeUsageError, match="RSA keys of 2,048"):
        Hand(rsa, A)
    a, _ = hands()
    with pytest.raises(IkeUsageError, match="RSA keys of 2,048"):
        a.endpoint.set_identity(rsa.identity)


@pytest.mark.parametrize(
    ("one", "other"), [("rsa2048", "p256"), ("p384", "rsa3072"), ("rsa2048", "rsa3072"), ("p521", "p256")]
)
def test_members_with_other_kinds_of_keys(one: str, other: str) -> None:
    """covers: 6.8.3.1.2-1, 6.8.3.1.2-6"""
    a, b = Hand(party(1, kind=one), A), Hand(party(2, kind=other), B)
    recorded(a, b)
    up(a, b)


@pytest.mark.parametrize("ours", [[20, 28], [28, 20], [28]])
@pytest.mark.parametrize("theirs", [[20, 28], [28]])
def test_ciphers(ours: list[int], theirs: list[int]) -> None:
    """The first of the initiator's that the responder has; both ways, and for what follows by rekeying.

    covers: 6.8.2-4
    """
    config_a, config_b = (
        Config(ciphers=tuple(map(EncryptionId, ids)), keylog=True) for ids in (ours, theirs)
    )
    a, b = hands(config_a, config_b)
    recorded(a, b)
    up(a, b)
    expected = next(cipher for cipher in ours if cipher in theirs)
    assert {event.algorithm for event in (*a.of(KeyLog), *b.of(KeyLog))} == {expected}
    lines = [ikev2_decryption_table_line(event) for event in a.of(KeyLog)]
    assert all((line is not None) == (expected == 20) for line in lines)
    for _ in range(2):
        a.endpoint.rekey_ike(a.of(Established)[0].sa, 1.0)
        messages, sender, receiver = [datagram.data for datagram in a.out(1.0)], a, b
        while messages:
            answers = [answer for data in messages for answer in receiver.take(data, sender.address, 1.0)]
            messages, sender, receiver = answers, receiver, sender
    assert len(a.of(IkeRekeyed)) == len(b.of(IkeRekeyed)) == 2
    assert {event.algorithm for event in (*a.of(KeyLog), *b.of(KeyLog))} == {expected}


def test_no_common_cipher() -> None:
    a, b = hands(
        Config(ciphers=(EncryptionId.ENCR_CHACHA20_POLY1305,)),
        Config(ciphers=(EncryptionId.ENCR_AES_GCM_16,)),
    )
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (answer,) = b.take(init.data, A)
    assert decode_message(answer)[1] == (Notify(NotifyType.NO_PROPOSAL_CHOSEN),)


def test_no_common_signature_hash() -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header, payloads = decode_message(init.data)
    stripped = without(Notify)(payloads)
    sha1 = Notify(NotifyType.SIGNATURE_HASH_ALGORITHMS, b"\x00\x01")
    b.take(encode_message(header, (*stripped, sha1)), A)
    assert len(b.endpoint.status()) == 1
    (response,) = b.take(init.data, A)
    header, payloads = decode_message(response)
    a.take(encode_message(header, (*without(Notify)(payloads), sha1)), B)
    assert not a.of(SignatureNeeded)
    a.endpoint.on_timer(10.1)
    a.out(10.1)
    assert "accepts no signature hash" in failures(a)[0].reason


def test_a_renewed_certificate_is_used_for_what_comes_after() -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    renewed = party(7)
    b.endpoint.set_identity(renewed.identity)
    (response,) = b.take(init.data, A)
    (request,) = a.take(response, B)
    b.who = renewed
    (response,) = b.take(request, A)
    a.take(response, B)
    of_a, _ = up(a, b)
    assert of_a.member.address == renewed.identity.address


# --- the child SA ----------------------------------------------------------------------------------------

HALF = TrafficSelector(8, 0, 0, 65535, bytes(16), b"\x7f" + b"\xff" * 15)


def bad_offer(**changes: Any) -> Any:
    def offer(spi: int) -> tuple[Any, ...]:
        parts = {
            "sa": proposals.esp_offer(spi.to_bytes(4)),
            "i": TrafficSelectorsInitiator((ALL_IPV6,)),
            "r": TrafficSelectorsResponder((ALL_IPV6,)),
        } | changes
        return tuple(parts[name] for name in ("sa", "i", "r"))

    return offer


def esp(*transforms: Transform, spi: bytes = b"\x00\x00\x10\x00") -> SecurityAssociation:
    return SecurityAssociation((Proposal(1, 3, spi, transforms),))


@pytest.mark.parametrize(
    ("offer", "error"),
    [
        (bad_offer(i=TrafficSelectorsInitiator((HALF,))), NotifyType.TS_UNACCEPTABLE),
        (bad_offer(r=TrafficSelectorsResponder((HALF,))), NotifyType.TS_UNACCEPTABLE),
        (bad_offer(sa=esp(Transform(1, 20, 128), Transform(5, 0))), NotifyType.NO_PROPOSAL_CHOSEN),
        (bad_offer(sa=esp(Transform(1, 11), Transform(5, 0))), NotifyType.NO_PROPOSAL_CHOSEN),
        (
            bad_offer(sa=esp(proposals.AES_GCM_256, Transform(5, 0), spi=b"\x00\x00\x00\xff")),
            NotifyType.NO_PROPOSAL_CHOSEN,
        ),
    ],
)
def test_a_child_sa_that_the_responder_does_not_want(
    monkeypatch: pytest.MonkeyPatch, offer: Any, error: NotifyType
) -> None:
    """The peers are authenticated, and yet both end: without a child SA there is no channel.

    covers: 6.8.2-5, 6.8.3.1-3
    """
    monkeypatch.setattr(initiator_module, "offer_child", offer)
    a, b = hands()
    run(a, b)
    assert failures(a)[0].reason == f"the peer refused the child SA: {error.name}"
    assert failures(a)[0].rule is None
    assert len(failures(b)) == 1
    assert not a.of(Established)
    assert not b.of(Established)
    for hand in (a, b):
        hand.endpoint.on_timer(50.0)
        assert not hand.endpoint._sas
        assert not hand.endpoint._context.child_spis


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (bad_offer(i=TrafficSelectorsInitiator((HALF,))), "does not cover ::/0"),
        (bad_offer(r=TrafficSelectorsResponder((HALF,))), "does not cover ::/0"),
        (bad_offer(sa=esp(Transform(1, 20, 128), Transform(5, 0))), "did not offer"),
        (bad_offer(sa=esp(proposals.AES_GCM_256, Transform(5, 1))), "did not offer"),
    ],
)
def test_an_answer_that_the_initiator_does_not_want(
    monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    """covers: 6.8.3.1-3"""

    def answer_child(payloads: Any, spi: int) -> ChildAnswer:  # noqa: ARG001
        return ChildAnswer(4096, Proposal(1, 3, b"", ()), answer(spi))

    monkeypatch.setattr(responder_module, "answer_child", answer_child)
    a, b = hands()
    run(a, b)
    assert why in failures(a)[0].reason
    assert not a.of(Established)
    (closed,) = b.of(Closed)
    assert closed.by_peer


def test_wider_selectors_are_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: 6.8.3.1-3"""
    ipv4 = TrafficSelector(7, 0, 0, 65535, bytes(4), b"\xff" * 4)
    wide = (ipv4, ALL_IPV6)
    offer = bad_offer(i=TrafficSelectorsInitiator(wide), r=TrafficSelectorsResponder(wide))
    monkeypatch.setattr(initiator_module, "offer_child", offer)
    a, b = hands()
    _, _, _, response = recorded(a, b)
    up(a, b)
    assert required(inside(b, response), TrafficSelectorsInitiator).selectors == (ALL_IPV6,)


# --- INITIAL_CONTACT -------------------------------------------------------------------------------------


def test_a_restarted_peer_replaces_its_old_sa() -> None:
    a, b = hands()
    _, _, request, _ = recorded(a, b, now=0.0)
    assert find_notify(inside(a, request), NotifyType.INITIAL_CONTACT) is not None
    (old,) = b.of(Established)
    again = Hand(MEMBER_A, A, seed=1)
    recorded(again, b, now=100.0)
    (closed,) = b.of(Closed)
    assert (closed.sa, closed.reason, closed.by_peer) == (old.sa, "the peer restarted", True)
    assert len(b.of(Established)) == 2
    (status,) = b.endpoint.status()
    assert status.sa == b.of(Established)[1].sa


def test_a_second_sa_replaces_nothing() -> None:
    a, b = hands()
    recorded(a, b, now=0.0)
    _, _, request, _ = recorded(a, b, now=100.0)
    assert find_notify(inside(a, request), NotifyType.INITIAL_CONTACT) is None
    assert len(a.of(Established)) == len(b.of(Established)) == 2
    assert not b.of(Closed)
    assert len(b.endpoint.status()) == 2


def test_another_node_at_the_same_address_replaces_nothing() -> None:
    """Only the same identity may say that it has restarted."""
    a, b = hands()
    recorded(a, b, now=0.0)
    other = Hand(party(5), A, seed=1)
    recorded(other, b, now=100.0)
    assert not b.of(Closed)
    assert len(b.endpoint.status()) == 2


def test_certificates_are_not_parsed_before_the_message_is_authentic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger without our answer cannot reach the parser of certificates."""
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    (request,) = a.take(response, B)

    def parse(data: bytes) -> x509.Certificate:
        raise AssertionError(f"parsed {len(data)} bytes")

    monkeypatch.setattr(x509, "load_der_x509_certificate", parse)
    for position in range(32, len(request), 7):
        changed = request[:position] + bytes((request[position] ^ 1,)) + request[position + 1 :]
        assert b.take(changed, A) == []
