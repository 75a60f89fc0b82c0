"""Secrets do not show themselves."""

from __future__ import annotations

import pytest

from minerva.core.secret import Secret


def test_secret_is_not_shown() -> None:
    """Neither repr, nor str, nor formatting shows the bytes."""
    secret = Secret(b"hunter2")
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert "hunter2" not in text
        assert "7 bytes" in text
    assert secret.reveal() == b"hunter2"
    assert len(secret) == 7


def test_secret_compares_with_secrets_only() -> None:
    """Equal by content, and never equal to plain bytes."""
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"


def test_secret_is_no_key() -> None:
    """It cannot get into a dictionary that something prints."""
    with pytest.raises(TypeError):
        hash(Secret(b"a"))


def test_secret_keeps_its_own_copy() -> None:
    """A buffer that is overwritten afterwards does not change it."""
    buffer = bytearray(b"abc")
    secret = Secret(buffer)
    buffer[0] = 0
    assert secret.reveal() == b"abc"
