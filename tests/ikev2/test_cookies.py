"""Cookies."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

from minerva.ikev2.cookies import CookieJar
from tests.ikev2.nodes import A, B

SPI, NONCE = b"s" * 8, b"n" * 32


def jar() -> CookieJar:
    return CookieJar(random.Random(1).randbytes, 30.0)


def test_a_cookie_is_for_one_initiator() -> None:
    cookies = jar()
    cookie = cookies.make(SPI, A, NONCE, 5.0)
    assert len(cookie) <= 64
    assert cookies.check(cookie, SPI, A, NONCE, 5.0)
    assert cookies.make(SPI, A, NONCE, 29.0) == cookie
    assert not cookies.check(cookie, SPI, B, NONCE, 5.0)
    assert not cookies.check(cookie, b"t" * 8, A, NONCE, 5.0)
    assert not cookies.check(cookie, SPI, A, b"m" * 32, 5.0)
    assert not cookies.check(cookie[:-1], SPI, A, NONCE, 5.0)
    assert not cookies.check(b"", SPI, A, NONCE, 5.0)


def test_cookies_end() -> None:
    cookies = jar()
    cookie = cookies.make(SPI, A, NONCE, 5.0)
    assert cookies.check(cookie, SPI, A, NONCE, 59.0), "the secret before the present one is good as well"
    assert not cookies.check(cookie, SPI, A, NONCE, 60.0)
    renewed = cookies.make(SPI, A, NONCE, 31.0)
    assert renewed != cookie
    assert cookies.check(cookie, SPI, A, NONCE, 31.0)
    assert cookies.check(renewed, SPI, A, NONCE, 61.0)


def test_nothing_is_kept_for_strangers() -> None:
    cookies = jar()
    for number in range(1000):
        cookies.make(SPI, IPv6Address(number), NONCE, float(number))
    assert len(cookies._secrets) <= 2


def test_before_the_first_cookie_none_is_good() -> None:
    assert not jar().check(b"c" * 33, SPI, A, NONCE, 0.0)
