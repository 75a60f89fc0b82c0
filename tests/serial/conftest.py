"""What needs serial lines of real drivers, which only a guest has."""

from __future__ import annotations

import pytest

from tests.serial.guest import RUN, Monitor


@pytest.fixture(scope="session", autouse=True)
def _in_the_guest() -> None:
    """Skip elsewhere."""
    if not RUN.exists():
        pytest.skip("here are no serial lines to try things with: run 'make test-serial'")


@pytest.fixture(scope="session")
def monitor() -> Monitor:
    """QEMU's monitor."""
    return Monitor()
