"""The façade for scripts: the same calls, from one thread and from many."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minerva import asa as asynchronous
from minerva.asa import AsaError, ErrorCode, Objective, ObjectiveFlag, blocking
from tests.asa.node import node_in_thread

NEGOTIABLE = Objective("alms", ObjectiveFlag.F_NEG)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    with node_in_thread(tmp_path) as path:
        yield path


@pytest.mark.parametrize("name", ["Grasp", "Asa", "Session"])
def test_it_has_all_the_names(name: str) -> None:
    public = {
        name
        for name, _ in inspect.getmembers(getattr(asynchronous, name))
        if not name.startswith("_") and name != "grasp"
    }
    assert public <= set(dir(getattr(blocking, name)))


def test_a_script(node: Path) -> None:
    objective = Objective("motd", ObjectiveFlag.F_SYNCH, value="hello")
    with blocking.Asa.connect("script", node) as asa:
        asa.register_objective(objective)
        asa.listen_synchronize(objective)
        assert asa.synchronize(Objective("motd", ObjectiveFlag.F_SYNCH)).value == "hello"
        asa.flood(1000, objective)
        assert [item.objective.value for item in asa.get_flood(objective)] == ["hello"]
        assert len(asa.discover(objective, 0)) == 1
    with blocking.Grasp.connect(node) as grasp:
        assert grasp.status()["objectives"] == []


def test_the_functions_of_the_rfc(node: Path) -> None:
    with blocking.Grasp.connect(node) as grasp:
        handle = grasp.register_asa("script")
        grasp.register_objective(handle, NEGOTIABLE, discoverable=True)
        with pytest.raises(AsaError) as caught:
            grasp.register_asa("script")
        assert caught.value.code is ErrorCode.dupASA
        grasp.deregister_asa(handle, "script")


def test_two_threads_negotiate(node: Path) -> None:
    def respond(asa: blocking.Asa) -> Any:
        with asa.listen_negotiate(NEGOTIABLE) as session:
            assert session.offer(80).value == 100
            session.wait(1000)
            session.accept()
            return session.value

    with (
        blocking.Grasp.connect(node) as grasp,
        blocking.Asa.register(grasp, "one") as one,
        blocking.Asa.register(grasp, "two") as two,
        ThreadPoolExecutor(1) as pool,
    ):
        one.register_objective(NEGOTIABLE)
        responding = pool.submit(respond, one)
        while not two.discover(NEGOTIABLE, 0):
            time.sleep(0.001)
        with two.negotiate(Objective("alms", ObjectiveFlag.F_NEG, value=410)) as session:
            assert session.value == 80
            assert session.offer(100).value == 100
            assert session.agreed
        assert responding.result(10) == 100


def test_many_threads(node: Path) -> None:
    def work(number: int) -> Any:
        mine = Objective(f"o{number}", ObjectiveFlag.F_SYNCH, value=number)
        with blocking.Asa.register(grasp, f"asa {number}") as asa:
            asa.register_objective(mine)
            for _ in range(10):
                asa.listen_synchronize(mine)
                assert asa.synchronize(Objective(f"o{number}", ObjectiveFlag.F_SYNCH)).value == number
        return number

    with blocking.Grasp.connect(node) as grasp, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == list(range(40))


def test_closing_ends_the_calls_of_other_threads(node: Path) -> None:
    grasp = blocking.Grasp.open(node)
    handle = grasp.register_asa("script")
    grasp.register_objective(handle, NEGOTIABLE)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(grasp.listen_negotiate, handle, NEGOTIABLE) for _ in range(4)]
        time.sleep(0.05)
        grasp.close()
        for future in waiting:
            with pytest.raises(AsaError) as caught:
                future.result(10)
            assert caught.value.code is ErrorCode.noSocket
    with pytest.raises(AsaError) as caught:
        grasp.status()
    assert caught.value.code is ErrorCode.noSocket
    grasp.close()
    assert not any(thread.name == "minerva-asa" for thread in threading.enumerate())


def test_trace(node: Path) -> None:
    with blocking.Grasp.connect(node) as grasp:
        trace = grasp.trace()
        timer = threading.Timer(0.05, grasp.close)
        timer.start()
        assert list(trace) == []
        timer.join()


def test_no_node(tmp_path: Path) -> None:
    with pytest.raises(AsaError) as caught:
        blocking.Grasp.open(tmp_path / "grasp.sock")
    assert caught.value.code is ErrorCode.noSecurity
    assert not any(thread.name == "minerva-asa" for thread in threading.enumerate())
