"""The SA payload: proposals, transforms, and how one is chosen (RFC 7296 sections 2.7, 3.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from minerva.core.reader import Reader
from minerva.ikev2.constants import (
    KEY_LENGTH_ATTRIBUTE,
    MAX_ATTRIBUTES,
    MAX_PROPOSALS,
    DhGroup,
    EncryptionId,
    EsnId,
    IntegrityId,
    PayloadType,
    PrfId,
    ProtocolId,
    TransformType,
)
from minerva.ikev2.errors import IkeDecodeError

_MORE_PROPOSALS, _MORE_TRANSFORMS = 2, 3
_FIXED_LENGTH = 0x8000
_PROPOSAL = struct.Struct("!BxHBBBB")
_TRANSFORM = struct.Struct("!BxHBxH")
_ATTRIBUTE = struct.Struct("!HH")
_SPI_LENGTHS = {ProtocolId.IKE: (0, 8), ProtocolId.AH: (4,), ProtocolId.ESP: (4,)}


@dataclass(frozen=True, slots=True)
class Transform:
    """One algorithm (section 3.3.2). ``type`` and ``id`` are plain numbers where we know no name.

    ``key_length`` is in bits, ``None`` without that attribute. ``unknown_attributes`` says that there were
    others: such a transform cannot be chosen (section 3.3.6).

    ::

        0 (last) or 3 | RESERVED | Transform Length 16 | Type 8 | RESERVED | Transform ID 16 | Attributes
    """

    type: int
    id: int
    key_length: int | None = None
    unknown_attributes: bool = False

    def encode(self, *, last: bool) -> bytes:
        """Return the substructure."""
        attributes = b""
        if self.key_length is not None:
            attributes = _ATTRIBUTE.pack(_FIXED_LENGTH | KEY_LENGTH_ATTRIBUTE, self.key_length)
        more = 0 if last else _MORE_TRANSFORMS
        return _TRANSFORM.pack(more, _TRANSFORM.size + len(attributes), self.type, self.id) + attributes

    @classmethod
    def decode(cls, reader: Reader, *, last: bool) -> Transform:
        """Return the transform at the reader's position."""
        more, length, kind, number = _TRANSFORM.unpack(reader.read(_TRANSFORM.size, "transform"))
        if more != (0 if last else _MORE_TRANSFORMS):
            raise IkeDecodeError(f"transform: {more} in the place of 0 (last) or 3 (more)")
        attributes = Reader(reader.read(length - _TRANSFORM.size, "transform attributes"), IkeDecodeError)
        key_length, unknown, count = None, False, 0
        while attributes.remaining:
            count += 1
            if count > MAX_ATTRIBUTES:
                raise IkeDecodeError(f"transform: more than {MAX_ATTRIBUTES} attributes")
            head, value = attributes.u16("attribute type"), attributes.u16("attribute value")
            if head == _FIXED_LENGTH | KEY_LENGTH_ATTRIBUTE and key_length is None:
                key_length = value
                continue
            unknown = True
            if not head & _FIXED_LENGTH:
                attributes.read(value, "attribute value")
        return cls(kind, number, key_length, unknown)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One alternative (section 3.3.1). ``spi`` is empty, or 4 bytes for AH and ESP, 8 for a rekeyed IKE SA.

    ::

        0 (last) or 2 | RESERVED | Proposal Length 16 |
        Num 8 | Protocol ID 8 | SPI Size 8 | Num Transforms 8 | SPI | Transforms
    """

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]

    def encode(self, *, last: bool) -> bytes:
        """Return the substructure with all its transforms."""
        final = len(self.transforms) - 1
        body = self.spi + b"".join(t.encode(last=i == final) for i, t in enumerate(self.transforms))
        more = 0 if last else _MORE_PROPOSALS
        head = _PROPOSAL.pack(
            more,
            _PROPOSAL.size + len(body),
            self.number,
            self.protocol,
            len(self.spi),
            len(self.transforms),
        )
        return head + body

    @classmethod
    def decode(cls, reader: Reader) -> tuple[Proposal, bool]:
        """Return the proposal at the reader's position, and whether it says that it is the last."""
        more, length, number, protocol, spi_size, count = _PROPOSAL.unpack(
            reader.read(_PROPOSAL.size, "proposal")
        )
        if more not in (0, _MORE_PROPOSALS):
            raise IkeDecodeError(f"proposal: {more} in the place of 0 (last) or 2 (more)")
        body = Reader(reader.read(length - _PROPOSAL.size, "proposal"), IkeDecodeError)
        if protocol in _SPI_LENGTHS and spi_size not in _SPI_LENGTHS[ProtocolId(protocol)]:
            raise IkeDecodeError(f"proposal for {ProtocolId(protocol).name}: SPI of {spi_size} bytes")
        spi = body.read(spi_size, "SPI")
        transforms = tuple(Transform.decode(body, last=i == count - 1) for i in range(count))
        body.expect_end("proposal")
        return cls(number, protocol, spi, transforms), more == 0


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """The SA payload (section 3.3): proposals, the most preferred first."""

    TYPE: ClassVar[PayloadType] = PayloadType.SA

    proposals: tuple[Proposal, ...]

    def encode(self) -> bytes:
        """Return the payload's body."""
        final = len(self.proposals) - 1
        return b"".join(p.encode(last=i == final) for i, p in enumerate(self.proposals))

    @classmethod
    def decode(cls, body: bytes) -> SecurityAssociation:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        proposals: list[Proposal] = []
        last = False
        while not last:
            if len(proposals) == MAX_PROPOSALS:
                raise IkeDecodeError(f"SA: more than {MAX_PROPOSALS} proposals")
            proposal, last = Proposal.decode(reader)
            proposals.append(proposal)
        reader.expect_end("SA")
        return cls(tuple(proposals))


@dataclass(frozen=True, slots=True)
class Policy:
    """What we accept for one protocol: by transform type, the most preferred transform first.

    A type whose only transform has the number 0 ("none") may also be left out of a proposal.
    """

    protocol: ProtocolId
    acceptable: Mapping[int, tuple[Transform, ...]]

    def offer(self, spi: bytes, *, with_none: frozenset[int] = frozenset()) -> SecurityAssociation:
        """Return an SA payload with one proposal of all that we accept.

        Types that need not be negotiated are left out, but for those in ``with_none``.
        """
        transforms = tuple(
            transform
            for kind, choices in self.acceptable.items()
            if kind in with_none or not _omissible(choices)
            for transform in choices
        )
        return SecurityAssociation((Proposal(1, self.protocol, spi, transforms),))

    def choose(
        self, offered: Sequence[Proposal], *, spi: bytes = b"", preferred: Transform | None = None
    ) -> tuple[Proposal, Proposal] | None:
        """Return the first proposal that we can accept and the answer to it with our ``spi``, or ``None``.

        Of each type the first acceptable transform is taken, as the offering side put the best first, but
        ``preferred`` before all (the group that a KE payload is there for already).
        """
        for proposal in offered:
            if proposal.protocol != self.protocol or len(proposal.spi) != len(spi):
                continue
            chosen = self._choose_transforms(proposal, preferred)
            if chosen is not None:
                return proposal, Proposal(proposal.number, proposal.protocol, spi, chosen)
        return None

    def _choose_transforms(
        self, proposal: Proposal, preferred: Transform | None
    ) -> tuple[Transform, ...] | None:
        offered: dict[int, list[Transform]] = {}
        for transform in proposal.transforms:
            offered.setdefault(transform.type, []).append(transform)
        required = {kind for kind, choices in self.acceptable.items() if not _omissible(choices)}
        # An unknown transform type makes the proposal unacceptable as a whole (section 3.3.6).
        if not required <= offered.keys() <= self.acceptable.keys():
            return None
        chosen: list[Transform] = []
        for kind, transforms in offered.items():
            matching = [transform for transform in transforms if transform in self.acceptable[kind]]
            if not matching:
                return None
            chosen.append(preferred if preferred in matching and preferred is not None else matching[0])
        return tuple(chosen)

    def accepts_answer(self, answer: SecurityAssociation, offer: SecurityAssociation) -> Proposal | None:
        """Return the proposal of ``answer`` if it is exactly one choice out of our one-proposal ``offer``."""
        if len(answer.proposals) != 1:
            return None
        (chosen,), (offered,) = answer.proposals, offer.proposals
        kinds = [transform.type for transform in chosen.transforms]
        if (
            chosen.number != offered.number
            or chosen.protocol != offered.protocol
            or len(chosen.spi) != len(offered.spi)
            or sorted(kinds) != sorted({transform.type for transform in offered.transforms})
            or not set(chosen.transforms) <= set(offered.transforms)
        ):
            return None
        return chosen


def _omissible(choices: tuple[Transform, ...]) -> bool:
    return len(choices) == 1 and choices[0].id == 0


def suite(proposal: Proposal) -> tuple[PrfId, EncryptionId]:
    """Return the PRF and the cipher of a chosen proposal for an IKE SA."""
    return PrfId(find(proposal, TransformType.PRF)), EncryptionId(find(proposal, TransformType.ENCR))


def find(proposal: Proposal, kind: TransformType) -> int:
    """Return the number of the one transform of type ``kind`` that a chosen proposal has."""
    (number,) = (transform.id for transform in proposal.transforms if transform.type == kind)
    return number


AES_GCM_256 = Transform(TransformType.ENCR, EncryptionId.ENCR_AES_GCM_16, 256)
"""The one cipher for ESP (RFC 8994 section 6.8.3.1.1), and the first choice for the IKE SA itself."""

CHACHA20_POLY1305 = Transform(TransformType.ENCR, EncryptionId.ENCR_CHACHA20_POLY1305)
"""The second choice for IKE SAs. Its keys have 256 bits always, so no attribute says so (RFC 7634)."""

_CIPHERS = {cipher.id: cipher for cipher in (AES_GCM_256, CHACHA20_POLY1305)}

_NO_INTEGRITY = (Transform(TransformType.INTEG, IntegrityId.NONE),)


def ike_policy(
    prfs: Sequence[PrfId],
    groups: Sequence[DhGroup],
    ciphers: Sequence[EncryptionId] = (EncryptionId.ENCR_AES_GCM_16,),
) -> Policy:
    """Return the policy for IKE SAs with these algorithms, the most preferred first."""
    return Policy(
        ProtocolId.IKE,
        {
            TransformType.ENCR: tuple(_CIPHERS[cipher] for cipher in ciphers),
            TransformType.PRF: tuple(Transform(TransformType.PRF, prf) for prf in prfs),
            TransformType.INTEG: _NO_INTEGRITY,
            TransformType.DH: tuple(Transform(TransformType.DH, group) for group in groups),
        },
    )


def esp_policy(groups: Sequence[DhGroup] = ()) -> Policy:
    """Return the policy for child SAs. Extended sequence numbers are not negotiated.

    In IKE_AUTH there is no KE payload for the child, so no group but NONE is possible (section 1.2). In
    CREATE_CHILD_SA there must be one, for forward secrecy (RFC 8994 section 6.8.2): ``groups`` says of which.
    """
    return Policy(
        ProtocolId.ESP,
        {
            TransformType.ENCR: (AES_GCM_256,),
            TransformType.INTEG: _NO_INTEGRITY,
            TransformType.DH: tuple(
                Transform(TransformType.DH, group) for group in groups or (DhGroup.NONE,)
            ),
            TransformType.ESN: (Transform(TransformType.ESN, EsnId.NO_ESN),),
        },
    )


ESP_POLICY = esp_policy()
"""The policy for the child SA that comes with IKE_AUTH."""


def esp_offer(spi: bytes, policy: Policy = ESP_POLICY) -> SecurityAssociation:
    """Return our SA payload for a child SA. It names NO_ESN, which is mandatory for ESP (section 3.3.3)."""
    return policy.offer(spi, with_none=frozenset({TransformType.ESN}))
