"""Key agreement and key schedule."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from minerva.ikev2.constants import DhGroup, PrfId
from minerva.ikev2.crypto import PUBLIC_LENGTHS, IkeKeys, new_agreement, prf, prf_plus
from minerva.ikev2.errors import IkeCryptoError

GROUPS = [group for group in DhGroup if group is not DhGroup.NONE]
HASHES = {
    PrfId.PRF_HMAC_SHA2_256: hashes.SHA256(),
    PrfId.PRF_HMAC_SHA2_384: hashes.SHA384(),
    PrfId.PRF_HMAC_SHA2_512: hashes.SHA512(),
}


@pytest.mark.parametrize(
    ("algorithm", "mac"),
    [
        (PrfId.PRF_HMAC_SHA2_256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        (
            PrfId.PRF_HMAC_SHA2_384,
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
        (
            PrfId.PRF_HMAC_SHA2_512,
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
            "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ],
)
def test_prf_of_rfc_4868(algorithm: PrfId, mac: str) -> None:
    """RFC 4231 section 4.3, which RFC 4868 takes its vectors from."""
    assert prf(algorithm, b"Jefe", b"what do ya want for nothing?").hex() == mac


@pytest.mark.parametrize("algorithm", list(PrfId))
@pytest.mark.parametrize("length", [1, 31, 32, 33, 200, 400])
def test_prf_plus_is_hkdf_expand(algorithm: PrfId, length: int) -> None:
    """RFC 5869 took its expansion from IKEv2, so another implementation of it is the judge."""
    judge = HKDFExpand(HASHES[algorithm], length, b"seed").derive(b"k" * 64)
    assert prf_plus(algorithm, b"k" * 64, b"seed", length) == judge


@pytest.mark.parametrize("group", GROUPS)
def test_key_agreement(group: DhGroup) -> None:
    """covers: 6.8.2-3, 6.8.3.1.2-7"""
    ours, theirs = new_agreement(group), new_agreement(group)
    assert len(ours.public) == PUBLIC_LENGTHS[group]
    assert ours.public != theirs.public
    assert ours.load(theirs.public)() == theirs.load(ours.public)()


def test_the_prime_of_group_14() -> None:
    """RFC 3526 section 3: 2^2048 - 2^1984 - 1 + 2^64 * (floor(2^1918 pi) + 124476).

    covers: 6.8.3.1.2-7
    """

    def arctan_of_inverse(number: int, one: int) -> int:
        total = term = one // number
        divisor, sign = 3, -1
        while term:
            term //= number * number
            total += sign * (term // divisor)
            divisor, sign = divisor + 2, -sign
        return total

    one = 1 << (1918 + 64)
    pi = (16 * arctan_of_inverse(5, one) - 4 * arctan_of_inverse(239, one)) >> 64
    prime = 2**2048 - 2**1984 - 1 + 2**64 * (pi + 124_476)
    agreement = new_agreement(DhGroup.MODP_2048)
    assert prime == agreement._PRIME  # type: ignore[attr-defined]


def test_group_14_is_padded_to_the_modulus() -> None:
    agreement = new_agreement(DhGroup.MODP_2048)
    agreement._exponent = 3  # type: ignore[attr-defined]
    assert agreement.load((2).to_bytes(256))() == (8).to_bytes(256)


@pytest.mark.parametrize("value", [0, 1, -2, -1, 0x7FFF])
def test_values_of_group_14_that_give_a_secret_away(value: int) -> None:
    """RFC 6989 section 2.1; negative ones are counted from the modulus, the last is beyond it."""
    agreement = new_agreement(DhGroup.MODP_2048)
    prime = agreement._PRIME  # type: ignore[attr-defined]
    data = value if value in (0, 1) else prime + value + (1 if value < 0 else 0)
    with pytest.raises(IkeCryptoError, match="out of the range"):
        agreement.load(data.to_bytes(256))


def test_p256_of_rfc_5903() -> None:
    """RFC 5903 section 8.1: the shared secret is the x coordinate, the public value x and y."""
    private_i = 0xC88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433
    public_r = bytes.fromhex(
        "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63"
        "56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB"
    )
    agreement = new_agreement(DhGroup.ECP_256)
    agreement._private = ec.derive_private_key(private_i, ec.SECP256R1())  # type: ignore[attr-defined]
    assert agreement.load(public_r)().hex().upper() == (
        "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE"
    )


@pytest.mark.parametrize("group", GROUPS)
def test_public_values_of_another_length(group: DhGroup) -> None:
    agreement = new_agreement(group)
    for data in (b"", agreement.public[:-1], agreement.public + b"\x00"):
        with pytest.raises(IkeCryptoError, match="public value"):
            agreement.load(data)


@pytest.mark.parametrize("group", [DhGroup.ECP_256, DhGroup.ECP_384])
def test_points_that_are_not_on_the_curve(group: DhGroup) -> None:
    """An invalid-curve attack ends at once (RFC 6989)."""
    agreement = new_agreement(group)
    for data in (bytes(PUBLIC_LENGTHS[group]), b"\xff" * PUBLIC_LENGTHS[group]):
        with pytest.raises(IkeCryptoError, match="not a point"):
            agreement.load(data)
    changed = agreement.public[:-1] + bytes((agreement.public[-1] ^ 1,))
    with pytest.raises(IkeCryptoError, match="not a point"):
        agreement.load(changed)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f")])
def test_points_of_small_order_in_curve25519(point: bytes) -> None:
    """RFC 8031 section 4: an all-zero shared secret is refused."""
    with pytest.raises(IkeCryptoError, match="small order"):
        new_agreement(DhGroup.CURVE25519).load(point)()


@pytest.mark.parametrize("algorithm", list(PrfId))
def test_key_schedule(algorithm: PrfId) -> None:
    """RFC 7296 section 2.14, computed once more with another library's functions."""
    shared, nonce_i, nonce_r, spi_i, spi_r = b"s" * 32, b"i" * 32, b"r" * 20, b"I" * 8, b"R" * 8
    keys = IkeKeys.derive(algorithm, shared, nonce_i, nonce_r, spi_i, spi_r)
    size = HASHES[algorithm].digest_size
    skeyseed = hmac.digest(nonce_i + nonce_r, shared, HASHES[algorithm].name)
    seed = nonce_i + nonce_r + spi_i + spi_r
    stream = HKDFExpand(HASHES[algorithm], 3 * size + 72, seed).derive(skeyseed)
    found = (keys.sk_d, keys.sk_ei, keys.sk_er, keys.sk_pi, keys.sk_pr)
    assert b"".join(secret.reveal() for secret in found) == stream
    assert [len(secret) for secret in found] == [size, 36, 36, size, size]
    judge = HKDFExpand(HASHES[algorithm], 72, nonce_i + nonce_r).derive(keys.sk_d.reveal())
    assert b"".join(secret.reveal() for secret in keys.child(nonce_i, nonce_r)) == judge
    for initiator, secret in ((True, keys.sk_pi), (False, keys.sk_pr)):
        mac = hmac.digest(secret.reveal(), b"id", HASHES[algorithm].name)
        assert keys.maced_id(b"id", initiator=initiator) == mac
    assert "Secret" in repr(keys)
    assert keys.sk_d.reveal().hex() not in repr(keys)
