"""What can go wrong with vouchers and voucher requests."""

from __future__ import annotations

from enum import Enum

from minerva.core.errors import DecodeError, MinervaError


class VoucherError(MinervaError):
    """Base of all errors of this package; itself, a voucher that must not be made."""


class VoucherDecodeError(DecodeError, VoucherError):
    """Bytes are not the JSON of a voucher or of a voucher request."""


class CmsError(DecodeError, VoucherError):
    """Bytes are not a CMS SignedData with one valid signature of a certificate in it."""


class CmsSignatureError(CmsError):
    """The signature of a CMS SignedData is not one of its signer's key over its content."""


class StatusDecodeError(DecodeError, VoucherError):
    """Bytes are not a status that a pledge reports."""


class AuditLogDecodeError(DecodeError, VoucherError):
    """Bytes are not the audit log of a MASA."""


class Refusal(Enum):
    """Why a pledge refuses a voucher, or the registrar that came with it (RFC 8995 sections 5.6.1, 5.6.2)."""

    NOT_A_VOUCHER = "not-a-voucher"
    BAD_SIGNATURE = "bad-signature"
    SIGNER_NOT_OF_MAKER = "signer-not-of-maker"
    SIGNER_OUT_OF_TIME = "signer-out-of-time"
    SIGNER_IS_A_DEVICE = "signer-is-a-device"
    WRONG_SERIAL_NUMBER = "wrong-serial-number"
    WRONG_ISSUER = "wrong-issuer"
    WRONG_NONCE = "wrong-nonce"
    NONCELESS = "nonceless"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    ASSERTION_NOT_ACCEPTABLE = "assertion-not-acceptable"
    NO_PINNED_CERTIFICATE = "no-pinned-certificate"
    PINNED_OUT_OF_TIME = "pinned-out-of-time"
    REGISTRAR_NOT_PINNED = "registrar-not-pinned"
    REGISTRAR_OUT_OF_TIME = "registrar-out-of-time"
    REGISTRAR_NOT_AUTHORIZED = "registrar-not-authorized"
    REGISTRAR_REVOKED = "registrar-revoked"
    REVOCATION_UNKNOWN = "revocation-unknown"

    @property
    def sentence(self) -> str:
        """What is wrong, for the owner of the pledge."""
        return _SENTENCES[self]

    @property
    def report(self) -> str:
        """What the registrar is told, which may be an attacker: nothing of the pledge's clock or policy."""
        return _REGISTRAR_REPORT if self.name.startswith("REGISTRAR_") else _VOUCHER_REPORT


_SENTENCES = {
    Refusal.NOT_A_VOUCHER: "What the registrar sent is not a voucher.",
    Refusal.BAD_SIGNATURE: "The voucher's signature is not one of its signer's key.",
    Refusal.SIGNER_NOT_OF_MAKER: "The voucher is not signed by this device's maker.",
    Refusal.SIGNER_OUT_OF_TIME: "A certificate of the voucher's signer is not valid at this time.",
    Refusal.SIGNER_IS_A_DEVICE: "The voucher is signed by another device of the maker, not by the maker.",
    Refusal.WRONG_SERIAL_NUMBER: "The voucher is for a device with another serial number.",
    Refusal.WRONG_ISSUER: "The voucher is for a device with an identity from another issuer.",
    Refusal.WRONG_NONCE: "The voucher answers another request: its nonce is not this one's.",
    Refusal.NONCELESS: "The voucher has no nonce, and this device accepts none without.",
    Refusal.NOT_YET_VALID: "The voucher was made in the future: its maker's clock or this one is wrong.",
    Refusal.EXPIRED: "The voucher has expired.",
    Refusal.ASSERTION_NOT_ACCEPTABLE: "The voucher's assertion is not one that this device accepts.",
    Refusal.NO_PINNED_CERTIFICATE: "The voucher pins no certificate: the maker refuses this domain.",
    Refusal.PINNED_OUT_OF_TIME: "The certificate that the voucher pins is not valid at this time.",
    Refusal.REGISTRAR_NOT_PINNED: "The registrar's certificate has no path to the one that the voucher pins.",
    Refusal.REGISTRAR_OUT_OF_TIME: "A certificate of the registrar is not valid at this time.",
    Refusal.REGISTRAR_NOT_AUTHORIZED: (
        "The registrar's certificate is of the domain that the voucher pins, but not one of a registrar "
        "(extended key usage id-kp-cmcRA)."
    ),
    Refusal.REGISTRAR_REVOKED: "The registrar's certificate is revoked.",
    Refusal.REVOCATION_UNKNOWN: (
        "The voucher demands to know that the registrar's certificate is not revoked, "
        "and there is nothing that tells."
    ),
}
_VOUCHER_REPORT = "the voucher was not accepted"
_REGISTRAR_REPORT = "the registrar's certificate does not match the voucher"


class VoucherRefused(VoucherError):
    """A pledge does not accept a voucher, or its registrar, for ``reason``."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason.sentence} ({detail})" if detail else reason.sentence)
        self.reason = reason
