"""The ring against a model that keeps everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.console.ring import Ring


@given(size=st.integers(1, 40), chunks=st.lists(st.binary(max_size=60), max_size=20), data=st.data())
def test_it_has_the_last_bytes_at_their_offsets(size: int, chunks: list[bytes], data: st.DataObject) -> None:
    ring = Ring(size)
    everything = b""
    for chunk in chunks:
        ring.append(chunk)
        everything += chunk
        assert ring.total == len(everything)
        assert ring.oldest == max(0, len(everything) - size)
        start = data.draw(st.integers(ring.oldest, ring.total))
        end = data.draw(st.integers(start, ring.total))
        assert ring.slice(start, end) == everything[start:end]
        length = data.draw(st.integers(1, 80))
        assert ring.tail(length) == everything[ring.oldest :][-length:]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    chunks=st.lists(st.binary(max_size=60), min_size=12, max_size=12),
)
def test_its_size_can_be_changed(sizes: list[int], chunks: list[bytes]) -> None:
    """What is here stays, as far as there is room; what was let go before is not said to be here."""
    ring = Ring(sizes[0])
    everything = b""
    oldest = 0
    for size, chunk in zip(sizes, chunks, strict=False):
        ring.resize(size)
        oldest = max(oldest, len(everything) - size)
        assert (ring.oldest, ring.total) == (oldest, len(everything))
        assert ring.tail(100) == everything[oldest:]
        ring.append(chunk)
        everything += chunk
        oldest = max(oldest, len(everything) - size)
        assert ring.oldest == oldest
        assert ring.tail(100) == everything[oldest:]


@pytest.mark.parametrize(("start", "end"), [(1, 3), (2, 7), (5, 4)])
def test_what_is_not_here_cannot_be_had(start: int, end: int) -> None:
    ring = Ring(4)
    ring.append(b"123456")
    with pytest.raises(ValueError, match="are not in 2 to 6"):
        ring.slice(start, end)


def test_readers_of_the_same_bytes_share_them() -> None:
    ring = Ring(100)
    ring.append(b"0123456789")
    assert ring.slice(2, 8) is ring.slice(2, 8)
    assert ring.slice(2, 7) == b"23456"


def test_what_is_shared_is_not_what_came_later_to_the_same_place() -> None:
    ring = Ring(4)
    ring.append(b"abcd")
    assert ring.slice(0, 4) == b"abcd"
    ring.append(b"efgh")
    assert ring.slice(4, 8) == b"efgh"
    with pytest.raises(ValueError, match="are not in 4 to 8"):
        ring.slice(0, 4)


def test_a_ring_needs_a_size() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        Ring(0)
    with pytest.raises(ValueError, match="at least one byte"):
        Ring(1).resize(0)
