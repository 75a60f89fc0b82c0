"""Who this node is: its ACP certificate, the chain above it, and its trust anchors.

The private key is not part of it. It stays in ``key.pem``, which nothing here reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from minerva.core.secret import Secret
from minerva.pki.address import AcpAddress, Scheme
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.errors import (
    AddressError,
    CertificateError,
    IdentityError,
    NodeNameError,
    PathError,
)
from minerva.pki.files import File, sync_directory, write_files
from minerva.pki.node_name import AcpNodeName, AddressField
from minerva.pki.path import validate_path

CERTIFICATE_FILE = "cert.pem"
CHAIN_FILE = "chain.pem"
KEY_FILE = "key.pem"
ANCHORS_FILE = "anchors.pem"

IDEVID_DIRECTORY = "idevid"
"""Where, in a node's state directory, its maker put the device's own identity, in files of the same names."""

_NEW_DIRECTORY = "renewed"

_REMEDY = "get one with `minerva ca issue`"


@dataclass(frozen=True, slots=True)
class Identity:
    """An ACP node's own certificate and what it needs to check those of others.

    ``chain`` holds the intermediate CAs without the leaf, ``anchors`` at least one trust anchor.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]
    node_name: AcpNodeName
    address: AcpAddress

    @classmethod
    def from_certificates(
        cls,
        certificate: x509.Certificate,
        chain: tuple[x509.Certificate, ...],
        anchors: tuple[x509.Certificate, ...],
    ) -> Identity:
        """Return the identity of a node that owns ``certificate``.

        Raises :class:`IdentityError` if that certificate does not hold the address of an ACP node.
        """
        if not anchors:
            raise IdentityError(f"there is no trust anchor; {_REMEDY}")
        try:
            node_name = AcpNodeName.of(certificate)
        except NodeNameError as error:
            raise IdentityError(
                f"this node's certificate is not an ACP certificate: {error}; {_REMEDY}"
            ) from error
        return cls(certificate, chain, anchors, node_name, _own_address(node_name))

    @classmethod
    def from_pem(cls, cert_pem: bytes, chain_pem: bytes, anchors_pem: bytes) -> Identity:
        """Return the identity in the bytes of three PEM files, of which ``chain_pem`` may be empty.

        Raises :class:`IdentityError`.
        """
        certificates = _load(cert_pem, CERTIFICATE_FILE)
        if len(certificates) != 1:
            raise IdentityError(
                f"{CERTIFICATE_FILE} holds {len(certificates)} certificates, not this node's alone; "
                f"CA certificates belong into {CHAIN_FILE}"
            )
        chain = _load(chain_pem, CHAIN_FILE)
        return cls.from_certificates(certificates[0], chain, _load(anchors_pem, ANCHORS_FILE))


def load_identity(directory: Path) -> Identity:
    """Return the identity in ``cert.pem``, ``chain.pem`` and ``anchors.pem`` of ``directory``.

    Raises :class:`IdentityError` for a missing or unreadable file, and as :meth:`Identity.from_pem`.
    """
    contents = []
    for name in (CERTIFICATE_FILE, CHAIN_FILE, ANCHORS_FILE):
        path = directory / name
        try:
            contents.append(path.read_bytes())
        except FileNotFoundError:
            raise IdentityError(
                f"{path} is missing; make an identity with `minerva ca issue CA_DIR {directory}`"
            ) from None
        except OSError as error:
            raise IdentityError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return Identity.from_pem(*contents)
    except IdentityError as error:
        raise IdentityError(f"{directory}: {error}") from error


def store_identity(directory: Path, identity: Identity, key: Secret) -> None:
    """Make ``identity``, whose private key is ``key`` in PEM, the one in ``directory``. Raises OSError.

    Whenever the power fails, either all of the old one or all of the new one is there:
    :func:`finish_storing` completes, at the next start, what was begun.
    """
    new = directory / _NEW_DIRECTORY
    new.mkdir(mode=0o700, exist_ok=True)
    write_files(
        new,
        File(ANCHORS_FILE, dump_pem(identity.anchors)),
        File(CHAIN_FILE, dump_pem(identity.chain)),
        File(KEY_FILE, key.reveal(), secret=True),
        # Last: with it, all of them are there, and until it is taken away some may not have got their place.
        File(CERTIFICATE_FILE, dump_pem((identity.certificate,))),
    )
    finish_storing(directory)


def finish_storing(directory: Path) -> None:
    """Put a new identity that is stored completely into its place, and forget one that is not."""
    new = directory / _NEW_DIRECTORY
    if not new.is_dir():
        return
    if (new / CERTIFICATE_FILE).exists():
        for name in (ANCHORS_FILE, CHAIN_FILE, KEY_FILE, CERTIFICATE_FILE):
            if (new / name).exists():
                (new / name).replace(directory / name)
        sync_directory(directory)
    for path in new.iterdir():
        path.unlink()
    new.rmdir()


def remove_identity(directory: Path) -> bool:
    """Remove the identity in ``directory``, and one that is about to take its place. Raises OSError.

    Returns whether there was any, or a part of one. The certificate goes first: whenever the power fails,
    the node is then none, and the rest can be removed by another try.
    """
    files = [
        place / name
        for place in (directory / _NEW_DIRECTORY, directory)
        for name in (CERTIFICATE_FILE, KEY_FILE, CHAIN_FILE, ANCHORS_FILE)
    ]
    found = [path for path in files if path.exists()]
    for path in found:
        path.unlink()
        sync_directory(path.parent)
    # What is left there are at most files that were not written to their end.
    finish_storing(directory)
    return bool(found)


def check_own(identity: Identity, when: datetime) -> None:
    """Raise :class:`IdentityError` unless our certificate is good at ``when``, which has a time zone."""
    try:
        validate_path((identity.certificate, *identity.chain), identity.anchors, when)
    except PathError as error:
        raise IdentityError(f"this node's certificate is of no use: {error}; {_REMEDY}") from error


def _own_address(node_name: AcpNodeName) -> AcpAddress:
    if node_name.address is None:
        what = "no ACP address" if node_name.address_field is AddressField.OMITTED else 'the ACP address "0"'
        raise IdentityError(
            f"this node's certificate holds {what} ({node_name}), but a node needs one; {_REMEDY}"
        )
    try:
        address = AcpAddress(node_name.address)
    except AddressError as error:
        raise IdentityError(
            f"this node's certificate holds an unusable address: {error}; {_REMEDY}"
        ) from error
    if address.scheme is Scheme.MANUAL:
        raise IdentityError(
            f"this node's address {address} is of the manual scheme, which is not for nodes; {_REMEDY}"
        )
    if address.v:
        raise IdentityError(f"this node's address {address} has V={address.v}, which must be 0; {_REMEDY}")
    return address


def _load(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return load_pem(data)
    except CertificateError as error:
        raise IdentityError(f"{name}: {error}; {_REMEDY}") from error
