"""Names of network namespaces."""

from __future__ import annotations

import os
import time

import pytest

from minerva.linux import namespace
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> str:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    return f"minerva-test-{os.getpid()}"


def test_made_and_deleted(name: str) -> None:
    made = Namespace.create(name)
    with pytest.raises(LinuxError, match="already"):
        Namespace.create(name)
    made.delete()
    assert name not in namespace.names("minerva-test-")
    with pytest.raises(LinuxError, match="cannot open"):
        Namespace(name)


def test_a_name_that_is_not_there_is_deleted_at_once(name: str) -> None:
    before = time.monotonic()
    namespace.delete_name(name)
    assert time.monotonic() - before < 0.1


def test_a_name_without_a_namespace_is_deleted(name: str) -> None:
    (namespace.RUN_NETNS / name).touch()
    namespace.delete_name(name)
    assert name not in namespace.names("minerva-test-")
