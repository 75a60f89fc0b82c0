"""The SSH server's own keys, and the public keys and certificates by which users are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import asyncssh
from asyncssh.auth_keys import SSHAuthorizedKeys

from minerva.console.krl import Credential
from minerva.core.errors import UsageError

_KINDS: Final = (("ssh-ed25519", "ssh_host_ed25519_key"), ("ecdsa-sha2-nistp256", "ssh_host_ecdsa_key"))

Decide = Callable[[bytes, str, Sequence[str] | None], bool]
"""Is given a key in SSH's encoding, its fingerprint, and for a CA the names that its certificate is for."""


def host_keys(directory: Path) -> list[asyncssh.SSHKey]:
    """Return the server's keys in ``directory``; those that are not there are made. Raises UsageError."""
    found = []
    for algorithm, name in _KINDS:
        path = directory / name
        try:
            if not path.exists():
                _make(directory, path, algorithm)
            found.append(asyncssh.read_private_key(path))
        except OSError as error:
            raise UsageError(f"cannot have the SSH key {path}: {error.strerror or error}") from error
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise UsageError(f"{path} is no private SSH key without a password: {error}") from error
    return found


def _make(directory: Path, path: Path, algorithm: str) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = asyncssh.generate_private_key(algorithm, comment="minerva console")
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor
        file.write(key.export_private_key("openssh"))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    path.with_name(f"{path.name}.pub").write_bytes(key.export_public_key("openssh"))


def certificate_name(shown: Credential) -> str:
    """Return what to call a certificate: by its id and number."""
    return f"certificate {shown.key_id.decode('utf-8', 'replace')!r} number {shown.serial}"


class KnownKeys(SSHAuthorizedKeys):
    """Asks ``decide`` about every key that a client shows, instead of a list."""

    def __init__(self, decide: Decide) -> None:
        super().__init__()
        self._decide = decide

    def __bool__(self) -> bool:
        return True

    def validate(
        self,
        key: asyncssh.SSHKey,
        client_host: str,  # noqa: ARG002
        client_addr: str,  # noqa: ARG002
        cert_principals: Sequence[str] | None = None,
        ca: bool = False,
    ) -> dict[str, object] | None:
        """Return the options of a key that is good; None for others."""
        principals = tuple(cert_principals or ()) if ca else None
        if not self._decide(key.public_data, key.get_fingerprint(), principals):
            return None
        # That a certificate is for the one who comes has been decided, so it must not be compared with
        # the name to log in with, which may be a console's.
        return {"principals": list(principals)} if principals is not None else {}

    def validate_x509(self, *args: object) -> tuple[None, None]:  # noqa: ARG002
        """No X.509 certificates."""
        return None, None
