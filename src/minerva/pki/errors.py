"""What can go wrong with names, addresses, certificates and identities."""

from __future__ import annotations

from enum import IntEnum

from minerva.core.errors import DecodeError, MinervaError


class Rule(IntEnum):
    """The rules of the ACP domain membership check (RFC 8994 section 6.2.3), by their numbers there."""

    PROOF_OF_POSSESSION = 1
    PATH = 2
    REVOCATION = 3
    DOMAIN = 4
    ADDRESS = 5

    @property
    def sentence(self) -> str:
        """What the rule demands of the peer."""
        return _SENTENCES[self]

    @property
    def label(self) -> str:
        """The rule's short name for messages, such as ``rule 2 (path)``."""
        return f"rule {self.value} ({self.name.lower().replace('_', ' ')})"


_SENTENCES = {
    Rule.PROOF_OF_POSSESSION: "The peer has proved that it owns the private key of its certificate.",
    Rule.PATH: "The peer's certificate has a valid path to one of our trust anchors.",
    Rule.REVOCATION: "The peer's certificate is not revoked, as far as we are able to learn.",
    Rule.DOMAIN: "The peer's certificate holds a valid acp-node-name of our ACP domain.",
    Rule.ADDRESS: "The peer's acp-node-name has an acp-address, which may be 0.",
}


class PkiError(MinervaError):
    """Base of all errors of this package."""


class NodeNameError(DecodeError, PkiError):
    """A text, a DER value or a certificate does not hold exactly one valid acp-node-name."""


class AddressError(PkiError):
    """An IPv6 address is not an ACP address, or does not have the field asked for."""


class CertificateError(DecodeError, PkiError):
    """Bytes are not a certificate."""


class RequestError(DecodeError, PkiError):
    """Bytes are not a certificate request (PKCS #10), or one that nobody may grant: why."""


class CrlError(DecodeError, PkiError):
    """Bytes are not a CRL, or one that must not be believed: why."""


class IdevidError(DecodeError, PkiError):
    """A certificate does not say what that of a device has to, or says it in a form of no use."""


class KeyRuleError(PkiError):
    """A public key or a signature algorithm is not one that RFC 8994 section 6.2.1 lets us accept."""


class PathError(PkiError):
    """A certificate has no valid path to a trust anchor."""


class IdentityError(PkiError):
    """This node's own certificate, chain or trust anchors cannot be used: why, and what to do."""


class AuthorityError(PkiError):
    """The built-in CA cannot do what it was asked for: why, and what to do."""


class MembershipError(PkiError):
    """A peer failed the ACP domain membership check at ``rule``."""

    def __init__(self, rule: Rule, reason: str) -> None:
        super().__init__(f"{rule.label}: {reason}")
        self.rule = rule
        self.reason = reason
