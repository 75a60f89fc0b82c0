"""Which pair of SAs is sent with."""

from __future__ import annotations

from minerva.connect.sending import SendingOrder


def test_the_first_pair_need_not_wait() -> None:
    order = SendingOrder[str]()
    assert order.choose() is None
    order.add(1, "one")
    assert order.waiting
    assert order.choose() == "one"
    assert not order.waiting


def test_a_new_pair_waits_until_it_is_allowed() -> None:
    order = SendingOrder[str]()
    order.add(1, "one")
    order.choose()
    order.add(2, "two")
    assert order.choose() == "one"
    assert order.allow(2)
    assert not order.allow(2), "it does not wait any more"
    assert not order.allow(3), "and that one never did"
    assert order.choose() == "two"


def test_without_any_that_is_allowed_the_oldest_that_waits_is_taken() -> None:
    order = SendingOrder[str]()
    order.add(1, "one")
    order.choose()
    order.add(2, "two")
    order.add(3, "three")
    order.remove(1)
    assert order.choose() == "two"
    assert order.waiting
    order.remove(2)
    order.remove(2)
    assert order.choose() == "three"
    order.remove(3)
    assert order.choose() is None


def test_back_to_an_older_pair_when_the_newest_is_gone() -> None:
    order = SendingOrder[str]()
    for spi, name in ((1, "one"), (2, "two")):
        order.add(spi, name)
        order.allow(spi)
    assert order.choose() == "two"
    order.remove(2)
    assert order.choose() == "one"
