"""What vouchers cost in CPU time: to sign, to open, and all that the pledge checks.

A registrar's request of 2.4 KB, as large as a published one: P-256 keys, two certificates. Beside it signs
cryptography's PKCS#7, which cannot say that the content is a voucher. For an enrolment there are three
signatures and five that are checked, over pledge, registrar and MASA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

from _report import report
from minerva.pki.ca import CertificateAuthority
from minerva.voucher.check import check_registrar_chain, check_voucher
from minerva.voucher.cms import open_signed, sign
from minerva.voucher.model import Assertion, Voucher, VoucherRequest


def cost(work: Callable[[], object], count: int) -> float:
    """Return the CPU time of one call, in microseconds."""
    started = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - started) / count * 1e6


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--count", type=int, default=500, help="calls in a run")
    arguments = parser.parse_args()
    when = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        authority = CertificateAuthority.create("bench.example.com", Path(folder, "root"))
        issued = authority.issue()
    certificate, key, anchors = issued.certificate, issued.private_key, issued.anchors
    assert isinstance(key, EllipticCurvePrivateKey)
    request = VoucherRequest(
        assertion=Assertion.PROXIMITY,
        created_on=when,
        serial_number="FD-0017",
        nonce="62a2e7693d82fcda2624de58fb6722e5",
        prior_signed_voucher_request=bytes(1650),
    )
    voucher = Voucher(
        assertion=Assertion.LOGGED,
        created_on=when,
        serial_number="FD-0017",
        nonce="62a2e7693d82fcda2624de58fb6722e5",
        pinned_domain_cert=certificate.public_bytes(Encoding.DER),
    )
    payload = request.encode()
    signed = sign(payload, key, certificate, anchors, when=when)
    signed_voucher = sign(voucher.encode(), key, certificate, when=when)

    def judge() -> None:
        found = check_voucher(
            signed_voucher,
            serial_number="FD-0017",
            certificate=certificate,
            anchors=anchors,
            nonce=voucher.nonce,
            when=when,
        )
        check_registrar_chain(found, (certificate,), when)

    def others_sign() -> bytes:
        builder = PKCS7SignatureBuilder().set_data(payload).add_signer(certificate, key, hashes.SHA256())
        return builder.sign(Encoding.DER, [PKCS7Options.Binary])

    def figure(name: str, work: Callable[[], object]) -> list[float]:
        cost(work, 50)
        values = [cost(work, arguments.count) for _ in range(arguments.runs)]
        print(f"{name}: {[round(value) for value in values]} us", file=sys.stderr)
        return values

    ours = figure("sign a request", lambda: sign(payload, key, certificate, anchors, when=when))
    theirs = figure("cryptography signs", others_sign)
    report("voucher", "sign a request", ours, "us of CPU", "lower", "cryptography", theirs)
    for name, work in (
        ("open a request", lambda: open_signed(signed)),
        ("encode a request", request.encode),
        ("decode a request", lambda: VoucherRequest.decode(payload)),
        ("judge a voucher and its registrar", judge),
    ):
        report("voucher", name, figure(name, work), "us of CPU", "lower")


if __name__ == "__main__":
    main()
