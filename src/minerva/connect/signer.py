"""The signer: the one process with the ACP key, and it can do one thing only.

It makes the signature of an IKE_AUTH exchange (RFC 7296 section 2.15) over octets that it puts together
itself from a message that it has parsed as our own IKE_SA_INIT, so that whoever takes over the abutment
cannot have a TLS handshake, a certificate request or anything else signed.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

from minerva.connect.child import Child
from minerva.connect.ipc import Message
from minerva.connect.keys import load_key
from minerva.connect.messages import Identity, SignerReady, SignReply, SignRequest
from minerva.core.rate import TokenBucket
from minerva.ikev2 import auth
from minerva.ikev2.errors import IkeError
from minerva.pki.errors import IdentityError
from minerva.pki.keys import PrivateKey

log = logging.getLogger(__name__)

SIGNATURES_PER_SECOND = 50.0
BURST = 200
"""Limits on signing: far above what a node with many neighbours needs, far below what an oracle wants."""


class Signer(Child):
    """The signer process."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._key: PrivateKey | None = None
        self._rate = TokenBucket(BURST, 1 / SIGNATURES_PER_SECOND)
        self._counters = {"signed": 0, "refused": 0}

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        if isinstance(message, Identity) and len(descriptors) == 1:
            self.send(SignerReady(self._load(message, descriptors[0])))
        elif isinstance(message, SignRequest):
            self.send(self._sign(message))
        else:
            return False
        return True

    def _load(self, identity: Identity, descriptor: int) -> str | None:
        """Load the key; return what is wrong with it, or ``None``."""
        try:
            self._key = load_key(identity, descriptor)
        except IdentityError as error:
            return str(error)
        return None

    def _sign(self, request: SignRequest) -> SignReply:
        reason = ""
        if self._key is None:
            reason = "no key is loaded"
        elif not self._rate.take(time.monotonic()):
            reason = f"more than {SIGNATURES_PER_SECOND:.0f} signatures a second were asked for"
        else:
            try:
                auth.check_own_init(request.message)
                octets = auth.signed_octets(request.message, request.nonce, request.maced_id)
                signature = auth.sign(self._key, octets, auth.HashAlgorithm(request.hash))
            except (IkeError, ValueError) as error:
                reason = str(error)
            else:
                self._counters["signed"] += 1
                return SignReply(request.request, signature, "")
        self._counters["refused"] += 1
        log.warning("refused to sign: %s", reason)
        return SignReply(request.request, None, reason)

    def state(self) -> dict[str, Any]:
        return {"key": "loaded" if self._key is not None else "missing", **self._counters}
