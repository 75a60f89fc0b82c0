"""Numbers of IKEv2, spelled as in the IANA registry, and the limits on what is accepted.

Source: RFC 7296 section 3 and the registry "Internet Key Exchange Version 2 (IKEv2) Parameters". Only what
the profile of RFC 8994 section 6.8.3 needs, or what a peer may say to us, has a name.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

IKE_PORT = 500
"""The UDP port of IKE (RFC 7296 section 2)."""

ENCAPSULATION_PORT = 4500
"""The UDP port of IKE and ESP in UDP (RFC 3948; RFC 7296 section 2.23)."""

VERSION = 0x20
"""Major version 2, minor version 0, as in the header."""

MAJOR_VERSION = 2

SPI_LENGTH = 8
"""The length of an IKE SPI, in bytes."""

NO_SPI = bytes(SPI_LENGTH)
"""The SPI of a responder that has not chosen one yet."""

MIN_NONCE_LENGTH, MAX_NONCE_LENGTH = 16, 256
"""The lengths of a nonce, in bytes (RFC 7296 section 3.9)."""

MIN_COOKIE_LENGTH, MAX_COOKIE_LENGTH = 1, 64
"""The lengths of a cookie, in bytes (RFC 7296 section 2.6)."""

MIN_ESP_SPI = 256
"""The lowest SPI of an ESP SA; those below are reserved (RFC 4303 section 2.1)."""

MAX_MESSAGE_LENGTH = 65_535
"""The longest message accepted, in bytes: no UDP datagram is longer."""

MAX_INIT_LENGTH = 8_192
"""The longest IKE_SA_INIT message accepted, in bytes: the one that strangers may make us parse."""

MIN_INIT_LENGTH = 28 + 40 + 40 + 20
"""The shortest IKE_SA_INIT request that there can be, in bytes: header, an SA with AES-GCM, a PRF and a
group, a KE of the smallest group, a nonce. No cookie is longer than that, so nobody has us send to others
more than he sends himself."""

MAX_PAYLOADS = 64
"""How many payloads a message may have."""

MAX_FRAGMENTS, MAX_FRAGMENTED_LENGTH = 64, 32_768
"""How many fragments a message may come in, and how many bytes of payloads that may be. Far more than the
longest chain of certificates that is accepted; what strangers can have us keep is this times the number of
their half-open SAs."""

MAX_PROPOSALS = 32
"""How many proposals an SA payload may have. The transforms of each are at most 255 by their count field."""

MAX_ATTRIBUTES = 4
"""How many attributes a transform may have. One is defined."""


class ExchangeType(IntEnum):
    """RFC 7296 section 3.1."""

    IKE_SA_INIT = 34
    IKE_AUTH = 35
    CREATE_CHILD_SA = 36
    INFORMATIONAL = 37


class Flag(IntFlag):
    """The flags of the header (RFC 7296 section 3.1)."""

    INITIATOR = 0x08
    VERSION = 0x10
    RESPONSE = 0x20


class PayloadType(IntEnum):
    """RFC 7296 section 3.2, and RFC 7383 section 2.5 for the last one."""

    NO_NEXT_PAYLOAD = 0
    SA = 33
    KE = 34
    ID_I = 35
    ID_R = 36
    CERT = 37
    CERTREQ = 38
    AUTH = 39
    NONCE = 40
    NOTIFY = 41
    DELETE = 42
    VENDOR_ID = 43
    TS_I = 44
    TS_R = 45
    SK = 46
    CP = 47
    EAP = 48
    SKF = 53


class ProtocolId(IntEnum):
    """RFC 7296 section 3.3.1."""

    NONE = 0
    IKE = 1
    AH = 2
    ESP = 3


class TransformType(IntEnum):
    """RFC 7296 section 3.3.2."""

    ENCR = 1
    PRF = 2
    INTEG = 3
    DH = 4
    ESN = 5


class EncryptionId(IntEnum):
    """Transform type 1: those with an ICV of 16 bytes and 256-bit keys (RFC 8994 section 6.8.3.1.1)."""

    ENCR_AES_GCM_16 = 20
    ENCR_CHACHA20_POLY1305 = 28


class PrfId(IntEnum):
    """Transform type 2."""

    PRF_HMAC_SHA2_256 = 5
    PRF_HMAC_SHA2_384 = 6
    PRF_HMAC_SHA2_512 = 7


class IntegrityId(IntEnum):
    """Transform type 3. An AEAD needs none."""

    NONE = 0


class DhGroup(IntEnum):
    """Transform type 4 (RFC 3526, RFC 5903, RFC 8031)."""

    NONE = 0
    MODP_2048 = 14
    ECP_256 = 19
    ECP_384 = 20
    ECP_521 = 21
    CURVE25519 = 31


class EsnId(IntEnum):
    """Transform type 5."""

    NO_ESN = 0
    ESN = 1


KEY_LENGTH_ATTRIBUTE = 14
"""The attribute type of a key length, in bits (RFC 7296 section 3.3.5)."""


class IdType(IntEnum):
    """RFC 7296 section 3.5."""

    ID_IPV4_ADDR = 1
    ID_FQDN = 2
    ID_RFC822_ADDR = 3
    ID_IPV6_ADDR = 5
    ID_DER_ASN1_DN = 9
    ID_DER_ASN1_GN = 10
    ID_KEY_ID = 11


class CertEncoding(IntEnum):
    """RFC 7296 section 3.6."""

    X509_SIGNATURE = 4


class AuthMethod(IntEnum):
    """RFC 7296 section 3.8; 14 is of RFC 7427 and the only one of the profile."""

    DIGITAL_SIGNATURE = 14


class HashAlgorithm(IntEnum):
    """Hashes of digital signatures (RFC 7427 section 7). SHA-1 is not accepted, so it has no name."""

    SHA2_256 = 2
    SHA2_384 = 3
    SHA2_512 = 4


class TsType(IntEnum):
    """RFC 7296 section 3.13.1."""

    TS_IPV4_ADDR_RANGE = 7
    TS_IPV6_ADDR_RANGE = 8


class NotifyType(IntEnum):
    """RFC 7296 section 3.10.1; RFC 7383 section 2.3 and RFC 7427 section 4 for the last two."""

    UNSUPPORTED_CRITICAL_PAYLOAD = 1
    INVALID_IKE_SPI = 4
    INVALID_MAJOR_VERSION = 5
    INVALID_SYNTAX = 7
    INVALID_MESSAGE_ID = 9
    INVALID_SPI = 11
    NO_PROPOSAL_CHOSEN = 14
    INVALID_KE_PAYLOAD = 17
    AUTHENTICATION_FAILED = 24
    SINGLE_PAIR_REQUIRED = 34
    NO_ADDITIONAL_SAS = 35
    INTERNAL_ADDRESS_FAILURE = 36
    FAILED_CP_REQUIRED = 37
    TS_UNACCEPTABLE = 38
    INVALID_SELECTORS = 39
    TEMPORARY_FAILURE = 43
    CHILD_SA_NOT_FOUND = 44
    INITIAL_CONTACT = 16384
    SET_WINDOW_SIZE = 16385
    ADDITIONAL_TS_POSSIBLE = 16386
    NAT_DETECTION_SOURCE_IP = 16388
    NAT_DETECTION_DESTINATION_IP = 16389
    COOKIE = 16390
    USE_TRANSPORT_MODE = 16391
    REKEY_SA = 16393
    IKEV2_FRAGMENTATION_SUPPORTED = 16430
    SIGNATURE_HASH_ALGORITHMS = 16431


FIRST_STATUS_TYPE = 16384
"""Notify types below this one report errors (RFC 7296 section 3.10.1)."""


def notify_name(value: int) -> str:
    """Return the name of a notify message type, or its number where we know none."""
    try:
        return NotifyType(value).name
    except ValueError:
        return f"notify type {value}"
