"""The web page, by those who mean it harm: strangers, and users who want more than is theirs."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

pytest.importorskip("websockets.sync.client")

from tests.console.serving import PASSWORD, Serving, password_hash, until
from tests.console.test_web import TRUSTING, Page, seen


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    it = Serving(tmp_path_factory.mktemp("web"))
    for name in ("web1", "web10"):
        it.ports[name] = {"type": "process", "command": ["sh", "-c", f"echo the secret of {name}; exec cat"]}
    it.extra = "\n".join(
        [
            "[console.users.narrow]",
            f"password = {json.dumps(password_hash(PASSWORD))}",
            'view = ["web?"]',
        ]
    )
    with it:
        until(lambda: "secret of web10" in it.cli("log", "web10").stdout, "the record of web10")
        yield it


def upgrade(page: Page, console: str, open_ones: ExitStack, then: bytes = b"") -> int:
    """Ask for a terminal; return the status of the answer. It stays open as long as ``open_ones``."""
    host, _, port = page.host.partition(":")
    raw = socket.create_connection((host, int(port)), timeout=10)
    sock = open_ones.enter_context(TRUSTING.wrap_socket(raw))
    lines = [
        f"GET /api/consoles/{console}/attach HTTP/1.1",
        *(f"Host: {page.host}", f"Origin: https://{page.host}", f"Cookie: {page.cookie}"),
        *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    status = int(sock.recv(1000).split()[1])
    sock.sendall(then)
    return status


def test_the_name_of_a_console_to_search_is_no_pattern(serving: Serving) -> None:
    page = Page(serving).login("narrow")
    lines = page.get("/api/search?text=secret")["lines"]
    assert {line["console"] for line in lines} == {"web1"}
    for name in ("web*", "web?", "web[1]", "*", "web1/../web10", "../web10", "web10", "no-such"):
        status, _, body = page.request("GET", f"/api/search?text=secret&console={name}")
        assert status == 403, body
        assert json.loads(body)["error"].startswith(f"there is no console {name}")
    assert page.get("/api/search?text=secret&console=web1")["lines"] == lines


def test_deep_json_is_no_internal_error(serving: Serving) -> None:
    page = Page(serving)
    for deep in ("[" * 8000, '{"user":' * 900 + "1" + "}" * 900):
        connection = http.client.HTTPSConnection(page.host, context=TRUSTING, timeout=20)
        connection.request("POST", "/api/login", deep, {"Origin": f"https://{page.host}"})
        assert connection.getresponse().status == 400
        connection.close()
    assert page.request("POST", "/api/login", {"user": "\ud800", "password": "\udfff\0"})[0] == 403
    page.login()
    with page.attach("web1") as terminal:
        terminal.send("[" * 60_000)
        seen(terminal, "the page said something that is no command")
    assert "internal error" not in serving.log.read_text()
    assert "Traceback" not in serving.log.read_text()


def test_what_is_broken_off_or_no_text_leaves_no_traceback(serving: Serving) -> None:
    page = Page(serving)
    host, _, port = page.host.partition(":")
    begun = f"POST /api/login HTTP/1.1\r\nHost: {page.host}\r\nOrigin: https://{page.host}\r\n"
    with TRUSTING.wrap_socket(socket.create_connection((host, int(port)), timeout=10)) as sock:
        sock.sendall(begun.encode() + b"Content-Length: 100\r\n\r\n{")
    page.login()
    with ExitStack() as open_ones:
        assert upgrade(page, "web1", open_ones, then=b"\x81\x82\0\0\0\0\xff\xfe") == 101
        time.sleep(1)
    assert "Traceback" not in serving.log.read_text()


def test_one_user_ends_no_logins_but_its_own(serving: Serving) -> None:
    other = Page(serving).login()
    pages = [Page(serving).login("looker") for _ in range(25)]
    assert other.get("/api/consoles")["user"] == "op"
    assert pages[0].request("GET", "/api/consoles")[0] == 401
    assert pages[-1].get("/api/consoles")["user"] == "looker"


def test_one_user_has_only_so_many_terminals(serving: Serving) -> None:
    page = Page(serving).login()
    with ExitStack() as open_ones:
        found = [upgrade(page, "web1", open_ones) for _ in range(40)]
    assert found == [101] * 32 + [403] * 8
    until(lambda: serving.consoles()["web1"]["attached"] == 0, "all are gone")
    with page.attach("web1") as terminal:
        seen(terminal, "the secret of web1")


def test_one_who_commands_a_terminal_and_reads_nothing_costs_little_memory(serving: Serving) -> None:
    assert serving.process is not None
    pid = serving.process.pid

    def resident() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    page = Page(serving).login()
    before = resident()
    with page.attach("web1") as terminal:
        said = json.dumps({"do": "who" + "x" * 50_000})
        raw = terminal.socket
        raw.settimeout(3)
        terminal.send(json.dumps({"do": "who"}))
        with suppress(TimeoutError, OSError, ssl.SSLError):  # it may not take more, which is as good
            for _ in range(300):
                terminal.send(said)
                for _ in range(20):
                    terminal.send('{"do": "who"}')
        time.sleep(0.5)
        assert resident() - before < 20_000


def test_many_guesses_at_once_are_no_more_than_one_after_another(serving: Serving) -> None:
    # The last test: from then on, this machine has to wait.
    page = Page(serving)

    def guess(number: int) -> int:
        try:
            return page.request("POST", "/api/login", {"user": "nobody", "password": f"wrong {number}"})[0]
        except OSError:
            return 429  # too many strangers are there

    with ThreadPoolExecutor(30) as pool:
        found = Counter(pool.map(guess, range(30)))
    assert found[403] <= 15
    assert found[429] >= 15
