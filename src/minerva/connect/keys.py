"""The node's private key, as a child gets it: in a sealed memory file that nobody can read a second time."""

from __future__ import annotations

import os
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from minerva.connect.messages import Identity
from minerva.pki.errors import IdentityError
from minerva.pki.keys import PrivateKey


def load_key(identity: Identity, descriptor: int) -> PrivateKey:
    """Return the key in the file ``descriptor``, which is closed. Raises IdentityError if it is not ours."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            key = load_pem_private_key(file.read(), password=None)
        certificate = x509.load_pem_x509_certificate(identity.certificate)
    except (ValueError, TypeError, OSError) as error:
        # What the library says may quote the file; it is a key.
        raise IdentityError("key.pem is not an unencrypted private key in PEM") from error

    def public(of: Any) -> bytes:
        return bytes(of.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    if public(key.public_key()) != public(certificate.public_key()):
        raise IdentityError("key.pem does not belong to the certificate in cert.pem")
    return key  # type: ignore[return-value]  # of the type in the certificate, as just seen
