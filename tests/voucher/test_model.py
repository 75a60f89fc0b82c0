"""Vouchers and requests in JSON."""

from __future__ import annotations

import json
from base64 import b64encode, encodebytes, urlsafe_b64encode
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.voucher.cms import open_signed
from minerva.voucher.errors import VoucherDecodeError, VoucherError
from minerva.voucher.leaves import MAX_TEXT_LENGTH, decode_date, encode_date
from minerva.voucher.model import MAX_SIZE, Assertion, Voucher, VoucherRequest, make_nonce

from .maker import NOW, VOUCHER

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=MAX_TEXT_LENGTH)
DATES = st.datetimes(
    datetime(1, 1, 2),
    datetime(9999, 12, 30),
    timezones=st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(
        lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
    ),
)
BINARIES = st.binary(max_size=300)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "assertion": st.none() | st.sampled_from(Assertion),
    "created_on": st.none() | DATES,
    "serial_number": TEXTS,
    "nonce": st.none() | TEXTS,
    "idevid_issuer": st.none() | BINARIES,
    "expires_on": st.none() | DATES,
}
REQUESTS = st.builds(
    VoucherRequest,
    **COMMON,
    proximity_registrar_cert=st.none() | BINARIES,
    prior_signed_voucher_request=st.none() | BINARIES,
)
VOUCHERS = st.builds(
    Voucher,
    **{
        **COMMON,
        "assertion": st.sampled_from(Assertion),
        "expires_on": st.none(),
        "pinned_domain_cert": st.binary(min_size=1, max_size=300),
        "domain_cert_revocation_checks": st.none() | st.booleans(),
    },
)


def voucher(**leaves: object) -> Voucher:
    """The voucher in the JSON of ``leaves``, with "_" for "-" in their names."""
    members = {name.replace("_", "-"): value for name, value in leaves.items()}
    return Voucher.decode(json.dumps({"ietf-voucher:voucher": {"serial-number": "1", **members}}).encode())


@given(REQUESTS)
def test_requests(request: VoucherRequest) -> None:
    """covers: P-32, V-1"""
    assert VoucherRequest.decode(request.encode()) == request


@given(VOUCHERS)
def test_vouchers(one: Voucher) -> None:
    """covers: V-1"""
    assert Voucher.decode(one.encode()) == one


def test_request_of_a_pledge() -> None:
    """covers: P-31, P-32, P-33"""
    request = VoucherRequest(
        assertion=Assertion.PROXIMITY,
        created_on=NOW,
        serial_number="FD-0017",
        nonce=make_nonce(bytes(range(16))),
        proximity_registrar_cert=b"\xff\xfe\xfd",
    )
    assert json.loads(request.encode()) == {
        "ietf-voucher-request:voucher": {
            "assertion": "proximity",
            "created-on": "2026-06-01T12:00:00Z",
            "serial-number": "FD-0017",
            "nonce": "AAECAwQFBgcICQoLDA0ODw==",
            "proximity-registrar-cert": "//79",
        }
    }


def test_request_of_a_registrar() -> None:
    """With the pledge's, and without when it is offline; one to renew a voucher holds that.

    covers: R-41, V-4
    """
    request = VoucherRequest(
        created_on=NOW,
        serial_number="FD-0017",
        nonce="n",
        idevid_issuer=bytes.fromhex("04183016801401"),
        prior_signed_voucher_request=b"\x30\x00",
        assertion=Assertion.PROXIMITY,
    )
    assert json.loads(request.encode())["ietf-voucher-request:voucher"] == {
        "assertion": "proximity",
        "created-on": "2026-06-01T12:00:00Z",
        "serial-number": "FD-0017",
        "nonce": "n",
        "idevid-issuer": "BBgwFoAUAQ==",
        "prior-signed-voucher-request": "MAA=",
    }
    offline = VoucherRequest(created_on=NOW, serial_number="FD-0017", idevid_issuer=b"\x01")
    assert set(json.loads(offline.encode())["ietf-voucher-request:voucher"]) == {
        "created-on",
        "serial-number",
        "idevid-issuer",
    }
    renewal = VoucherRequest(serial_number="FD-0017", prior_signed_voucher_request=VOUCHER.encode())
    prior = VoucherRequest.decode(renewal.encode()).prior_signed_voucher_request
    assert prior is not None
    assert Voucher.decode(prior) == VOUCHER


def test_what_means_nothing_in_a_request() -> None:
    """covers: P-33, V-1"""
    members = {
        "serial-number": "1",
        "pinned-domain-cert": "not base64!",
        "last-renewal-date": 5,
        "domain-cert-revocation-checks": [],
        "ice": {"cream": None},
    }
    data = json.dumps({"ietf-voucher-request:voucher": members, "other": 1}).encode()
    assert VoucherRequest.decode(data) == VoucherRequest(serial_number="1")


def test_published(fixtures: Path) -> None:
    """covers: V-1, V-4, R-41"""
    folder = fixtures / "rfc8995"
    pledge, registrar = (
        VoucherRequest.decode(open_signed((folder / name).read_bytes()).payload)
        for name in ("C2.1-pvr-pledge-to-registrar.cms.der", "C2.2-rvr-registrar-to-masa.cms.der")
    )
    answer = Voucher.decode(
        open_signed((folder / "C2.3-voucher-masa-to-registrar.cms.der").read_bytes()).payload
    )
    assert pledge.nonce == registrar.nonce == answer.nonce == "-_XE9zK9q8Ll1qylMtLKeg"
    assert pledge.serial_number == answer.serial_number == "00-D0-E5-F2-00-02"
    assert pledge.proximity_registrar_cert == answer.pinned_domain_cert
    assert pledge.created_on == datetime(2021, 4, 13, 21, 43, 23, 747_000, UTC)
    assert (
        registrar.prior_signed_voucher_request
        == (folder / "C2.1-pvr-pledge-to-registrar.cms.der").read_bytes()
    )
    for name in ("fig6-pvr.json", "fig7-rvr-with-prior.json", "fig8-rvr-offline-nonceless.json"):
        assert VoucherRequest.decode((folder / name).read_bytes()).serial_number == "JADA123456789"
    assert Voucher.decode((folder / "fig14-voucher.json").read_bytes()).created_on is None
    long_lived = Voucher.decode((fixtures / "rfc8366" / "ex-file-voucher-long-lived.json").read_bytes())
    assert long_lived.domain_cert_revocation_checks is True
    assert long_lived.expires_on is not None
    ephemeral = Voucher.decode((fixtures / "rfc8366" / "ex-file-voucher-ephemeral.json").read_bytes())
    assert ephemeral.nonce == "base64encodedvalue=="


@pytest.mark.parametrize("octets", [b"", b"\x00\x01\xfe\xff", bytes(range(200)), b"\xfb\xff"])
def test_base64(octets: bytes) -> None:
    """Standard and padded as we write it; as others write it as well.

    covers: P-32
    """
    standard = b64encode(octets).decode()
    assert (
        Voucher.decode(
            json.dumps({"ietf-voucher:voucher": {"serial-number": "1", "idevid-issuer": standard}}).encode()
        ).idevid_issuer
        == octets
    )
    for text in (
        urlsafe_b64encode(octets).decode(),
        standard.rstrip("="),
        encodebytes(octets).decode(),
        f" {standard}\r\n",
    ):
        assert voucher(idevid_issuer=text).idevid_issuer == octets


@pytest.mark.parametrize("text", ["A", "AA=A", "AA!=", "ä", "=A==", 5, ["AA=="], {}, True])
def test_not_base64(text: object) -> None:
    with pytest.raises(VoucherDecodeError, match="idevid-issuer"):
        voucher(idevid_issuer=text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2016-10-07T19:31:42Z", datetime(2016, 10, 7, 19, 31, 42, tzinfo=UTC)),
        ("2016-10-07t19:31:42z", datetime(2016, 10, 7, 19, 31, 42, tzinfo=UTC)),
        ("2021-04-13T17:43:23.747-04:00", datetime(2021, 4, 13, 21, 43, 23, 747_000, UTC)),
        ("2021-04-13T17:43:23.123456789+05:30", datetime(2021, 4, 13, 12, 13, 23, 123_456, UTC)),
        ("2021-04-13T00:00:00-00:00", datetime(2021, 4, 13, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_dates(text: str, moment: datetime) -> None:
    """covers: V-1"""
    assert voucher(created_on=text).created_on == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2016-10-07",
        "2016-10-07T19:31:42",
        "2016-10-07 19:31:42Z",
        "2016-10-07T19:31Z",
        "2016-02-30T00:00:00Z",
        "2016-10-07T24:00:00Z",
        "2016-10-07T19:31:61Z",
        "2016-10-07T19:31:42+24:00",
        "2016-10-07T19:31:42.Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "9999-12-31T23:59:60Z",
        "٢016-10-07T19:31:42Z",
        "2016-10-07T19:31:42Z\n",
        1475868702,
        None,
    ],
)
def test_not_dates(text: object) -> None:
    if text is None:
        assert voucher(created_on=text).created_on is None
        return
    with pytest.raises(VoucherDecodeError, match="created-on"):
        voucher(created_on=text)


@given(DATES)
def test_dates_in_and_out(moment: datetime) -> None:
    text = encode_date(moment)
    assert text.endswith("Z")
    assert decode_date(text, "date", VoucherDecodeError) == moment


def test_dates_need_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        encode_date(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    "leaves",
    [
        {"assertion": "Verified"},
        {"assertion": 1},
        {"assertion": ["verified"]},
        {"serial_number": ""},
        {"serial_number": 17},
        {"serial_number": None},
        {"serial_number": "a\x00b"},
        {"serial_number": "x" * (MAX_TEXT_LENGTH + 1)},
        {"nonce": ""},
        {"nonce": 12345678},
        {"nonce": "line\nbreak"},
        {"domain_cert_revocation_checks": "yes"},
        {"domain_cert_revocation_checks": 1},
    ],
)
def test_bad_leaves(leaves: dict[str, object]) -> None:
    """covers: V-1"""
    with pytest.raises(VoucherDecodeError):
        voucher(**leaves)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"ietf-voucher:voucher":null}',
        b'{"ietf-voucher:voucher":[]}',
        b'{"ietf-voucher:voucher":{}}',
        b'{"ietf-voucher-request:voucher":{"serial-number":"1"}}',
        b'{"voucher":{"serial-number":"1"}}',
        b'{"ietf-voucher:voucher":{"serial-number":"1","serial-number":"1"}}',
        b'{"ietf-voucher:voucher":{"serial-number":"1"}}' + b" " * MAX_SIZE,
    ],
)
def test_not_vouchers(data: bytes) -> None:
    with pytest.raises(VoucherDecodeError):
        Voucher.decode(data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pinned_domain_cert": None}, "bearer"),
        ({"pinned_domain_cert": b""}, "bearer"),
        ({"assertion": None}, "assertion"),
        ({"expires_on": NOW}, "not both"),
        ({"nonce": None, "last_renewal_date": NOW}, "expires"),
    ],
)
def test_vouchers_that_are_not_made(changes: dict[str, Any], sentence: str) -> None:
    """covers: V-5"""
    leaves = {
        "serial_number": "1",
        "assertion": Assertion.LOGGED,
        "nonce": "n",
        "pinned_domain_cert": b"\x30\x00",
    }
    assert Voucher(**leaves).encode()
    with pytest.raises(VoucherError, match=sentence):
        Voucher(**{**leaves, **changes}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "n"},
        {"nonce": None, "expires_on": NOW},
        {"nonce": None, "expires_on": NOW, "last_renewal_date": NOW},
        {"nonce": None},
        {"assertion": Assertion.VERIFIED},
    ],
)
def test_kinds_of_voucher(changes: dict[str, Any]) -> None:
    """Audit, nonceless audit and ownership audit vouchers.

    covers: V-5
    """
    one = Voucher(
        **{"serial_number": "1", "assertion": Assertion.LOGGED, "pinned_domain_cert": b"\x30\x00", **changes}
    )
    assert Voucher.decode(one.encode()) == one


def test_nonces() -> None:
    assert make_nonce(bytes(8)) == "AAAAAAAAAAA="
    assert len(make_nonce(bytes(32))) == 44
    for size in (0, 7, 33):
        with pytest.raises(ValueError, match="8 to 32"):
            make_nonce(bytes(size))


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    for kind in (Voucher, VoucherRequest):
        with pytest.raises(VoucherDecodeError):
            kind.decode(data)
