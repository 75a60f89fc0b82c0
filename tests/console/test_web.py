"""The web page: over HTTP and websockets as scripts would, and in headless Chromium as people do."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

websockets = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from minerva.console.fronts import web  # noqa: E402
from tests.console.serving import PASSWORD, Serving, until  # noqa: E402

TRUSTING = ssl.create_default_context()
TRUSTING.check_hostname = False
TRUSTING.verify_mode = ssl.CERT_NONE


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    it = Serving(tmp_path_factory.mktemp("web"))
    evil = r"printf '<script>alert(1)</script>\033]0;<b>\007\n'; exec cat"
    it.ports["evil"] = {
        "type": "process",
        "command": ["sh", "-c", evil],
        "description": "<img src=x onerror=y>",
    }
    it.extra = "[console.ports.sh.power]\ntype = 'command'\nstatus = ['echo', 'on']\ncycle = ['true']\n"
    with it:
        yield it


class Page:
    """What a script can do at the server."""

    def __init__(self, serving: Serving) -> None:
        self.host = f"127.0.0.1:{serving.web_port}"
        self.cookie = ""

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPSConnection(self.host, context=TRUSTING, timeout=20)
        given = {"Cookie": self.cookie, "Origin": f"https://{self.host}"} | headers
        try:
            connection.request(method, path, None if body is None else json.dumps(body), given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def login(self, user: str = "op", password: str = PASSWORD) -> Page:
        status, headers, body = self.request("POST", "/api/login", {"user": user, "password": password})
        assert status == 200, body
        cookie = headers["set-cookie"]
        assert cookie.startswith(f"{web.COOKIE}=")
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "secure", "samesite=strict", "path=/"} <= attributes
        self.cookie = cookie.partition(";")[0]
        return self

    def attach(self, console: str, mode: str = "read", origin: str | None = None) -> Any:
        return websockets.connect(
            f"wss://{self.host}/api/consoles/{console}/attach?mode={mode}",
            ssl=TRUSTING,
            origin=f"https://{self.host}" if origin is None else origin,
            additional_headers={"Cookie": self.cookie},
            open_timeout=15,
        )


def seen(socket: Any, wanted: str, *, seconds: float = 10) -> str:
    """Return what came until ``wanted`` was in it, bytes and texts together."""
    deadline, got = time.monotonic() + seconds, ""
    while wanted not in got:
        message = socket.recv(timeout=max(0.01, deadline - time.monotonic()))
        got += message if isinstance(message, str) else message.decode("utf-8", "replace")
    return got


def test_the_page_and_what_browsers_are_told(serving: Serving) -> None:
    page = Page(serving)
    status, headers, body = page.request("GET", "/")
    assert status == 200
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    nonce = policy["style-src"].partition("nonce-")[2].rstrip("'")
    assert nonce
    assert f'content="{nonce}"'.encode() in body
    assert "server" not in headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert page.request("GET", "/static/console.js")[1]["content-type"].startswith("text/javascript")
    for name in ("..%2fweb.py", "nothing", "xterm.version"):
        assert page.request("GET", f"/static/{name}")[0] == 404


def test_nothing_without_a_login(serving: Serving) -> None:
    page = Page(serving)
    paths = ("consoles", "search?text=x", "consoles/sh/log", "consoles/sh/records", "consoles/sh/who")
    for path in paths:
        assert page.request("GET", f"/api/{path}")[0] == 401
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        page.attach("sh").recv(timeout=5)
    assert page.request("POST", "/api/login", {"user": "op", "password": "wrong"})[0] == 403
    assert page.request("POST", "/api/login", {"user": "op"})[0] == 400
    assert page.request("POST", "/api/login", [])[0] == 400
    assert page.request("POST", "/api/login", "x" * 10_000)[0] == 413


def test_other_sites_have_no_say(serving: Serving) -> None:
    page = Page(serving).login()
    credentials = {"user": "op", "password": PASSWORD}
    assert page.request("POST", "/api/login", credentials, Origin="https://evil.example")[0] == 403
    assert page.request("POST", "/api/logout", {}, Origin="null")[0] == 403
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        page.attach("sh", origin="https://evil.example").recv(timeout=5)


def test_logged_out_is_out(serving: Serving) -> None:
    page = Page(serving).login()
    assert page.get("/api/consoles")["user"] == "op"
    assert page.request("POST", "/api/logout", {})[0] == 200
    assert page.request("GET", "/api/consoles")[0] == 401


def test_each_sees_and_does_what_it_may(serving: Serving) -> None:
    page = Page(serving).login("looker")
    found = page.get("/api/consoles")["consoles"]
    assert [(item["name"], item["may_write"]) for item in found] == [("sh", False)]
    assert page.request("GET", "/api/consoles/echo/log")[0] == 403
    assert page.request("GET", "/api/search?text=x&console=echo")[0] == 403
    with page.attach("sh", "write") as socket:
        seen(socket, '"writes": false')
        socket.send(b"echo no\r")
        assert "may only read" in seen(socket, "not sent")
        socket.send(json.dumps({"do": "force"}))
        seen(socket, "looker may not")
        for nonsense in ("x", "[]", "{}", '{"do": "nothing"}', '{"do": "power", "action": "up"}'):
            socket.send(nonsense)
        seen(socket, "no command")
    audit = (serving.directory / "state" / "audit.jsonl").read_text().splitlines()
    refused = [item for item in map(json.loads, audit) if not item["allowed"] and item["user"] == "looker"]
    assert {"input", "force"} <= {item["action"] for item in refused}


def test_a_terminal(serving: Serving) -> None:
    page = Page(serving).login()
    with page.attach("echo", "write") as socket, page.attach("echo") as other:
        seen(socket, '"writes": true')
        socket.send(b"hello \xff\x00 there")
        until(lambda: True, "")
        assert "there" in seen(socket, "there")
        seen(other, "there")
        socket.send(json.dumps({"do": "say", "text": "hi all"}))
        seen(other, "op: hi all")
        assert len(page.get("/api/consoles/echo/who")["who"]) == 2
        socket.send(json.dumps({"do": "release"}))
        seen(socket, '"writes": false')
        other.send(json.dumps({"do": "write"}))
        seen(other, '"writes": true')
    until(lambda: not page.get("/api/consoles/echo/who")["who"], "both are gone")


def test_a_page_that_reads_nothing_holds_up_nobody(serving: Serving) -> None:
    page = Page(serving).login()
    with page.attach("echo"), page.attach("echo", "write") as socket:
        seen(socket, '"writes": true')
        line = b"0123456789abcde\n" * 512
        for number in range(200):
            socket.send(line)
            socket.send(b"mark %d\n" % number)
            seen(socket, f"mark {number}\n", seconds=20)


def test_records(serving: Serving) -> None:
    page = Page(serving).login()
    with page.attach("sh", "write") as socket:
        seen(socket, '"writes": true')
        socket.send(b"echo fin$(echo d me)\r")
        seen(socket, "find me")
    found = until(lambda: page.get("/api/search?text=FIND+ME")["lines"], "it is found")
    assert found[0]["console"] == "sh"
    assert any(item["text"] == "find me" for item in page.get("/api/consoles/sh/log?lines=50")["lines"])
    [record] = page.get("/api/consoles/sh/records")["records"]
    status, headers, cast = page.request("GET", f"/api/consoles/sh/records/{record['name']}")
    assert status == 200
    assert headers["content-disposition"].startswith('attachment; filename="sh-')
    header, *events = cast.decode().splitlines()
    assert json.loads(header)["version"] == 2
    assert any("find me" in json.loads(event)[2] for event in events)
    assert page.request("GET", "/api/consoles/sh/records/nothing.cast")[0] == 404
    assert page.request("GET", "/api/consoles/sh/log?lines=x")[0] == 400
    assert page.request("GET", "/api/search")[0] == 400


def test_a_token_lets_one_in_once(serving: Serving) -> None:
    made = serving.ask("token", role="view", ports=["echo"])
    page = Page(serving).login("break-glass", made["token"])
    assert [item["name"] for item in page.get("/api/consoles")["consoles"]] == ["echo"]
    status, _, _ = page.request("POST", "/api/login", {"user": "break-glass", "password": made["token"]})
    assert status == 403


# --- in a browser ------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Chromium without a screen, told what to do by its DevTools protocol."""

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM is not None
        self.stack = ExitStack()
        self.process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"),
                *("--remote-debugging-port=0", f"--user-data-dir={directory}", "--window-size=1200,900"),
                *("--no-first-run", "--disable-dev-shm-usage", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._connect(directory)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _connect(self, directory: Path) -> None:
        port_file = directory / "DevToolsActivePort"
        until(lambda: port_file.exists() and port_file.read_text().strip(), "Chromium runs", seconds=40)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            pages = [item for item in json.load(answer) if item["type"] == "page"]
        url = pages[0]["webSocketDebuggerUrl"]
        self.socket = self.stack.enter_context(websockets.connect(url, max_size=None, open_timeout=20))
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, what: str) -> Any:
        return until(lambda: self.run(script), what)

    def type(self, text: str) -> None:
        for character in text:
            if character == "\r":
                key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            else:
                key = {"text": character, "key": character}
            self.call("Input.dispatchKeyEvent", type="keyDown", **key)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key["key"])

    def complaints(self) -> list[str]:
        """Return what the browser did not like, such as what the policy forbids."""
        found = []
        for event in self.events:
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
        # A request that has to wait for one before it is made again.
        return [text for text in found if "401" not in text and "429" not in text]

    def close(self) -> None:
        self.stack.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    it = Browser(tmp_path / "chromium")
    yield it
    it.close()


SHOWN = """(() => { const b = terminal.buffer.active; let s = "";
for (let i = 0; i < b.length; i++) s += b.getLine(i).translateToString(true) + "\\n"; return s; })()"""
ROWS = "[...document.querySelectorAll('#rows tr')].map((row) => row.cells[0].textContent).join()"


def click(browser: Browser, console: str, text: str) -> None:
    script = (
        f"(() => {{ for (const row of document.querySelectorAll('#rows tr')) "
        f"if (row.cells[0].textContent === '{console}') for (const b of row.querySelectorAll('button')) "
        f"if (b.textContent === '{text}') {{ b.click(); return true; }} return false; }})()"
    )
    browser.wait(script, f"{text} of {console}")


def log_in(browser: Browser, user: str) -> None:
    browser.wait("document.querySelector('#login') && !document.querySelector('#login').hidden", "the login")
    browser.run(f"document.querySelector('#login-user').value = '{user}'")
    browser.run(f"document.querySelector('#login-password').value = {json.dumps(PASSWORD)}")
    browser.run("document.querySelector('#login button').click()")


with_chromium = pytest.mark.skipif(
    CHROMIUM is None or not web.has_xterm(),
    reason="needs Chromium (Debian: chromium), and xterm.js (sh tools/vendor-xterm, which needs npm)",
)


@with_chromium
def test_in_a_browser(serving: Serving, browser: Browser, tmp_path: Path) -> None:
    """Log in, see the list, attach, type, see the answer, watch the replay; nothing breaks the policy."""
    browser.call("Page.navigate", url=f"https://127.0.0.1:{serving.web_port}/")
    log_in(browser, "op")
    browser.wait(f"{ROWS} === 'echo,evil,sh'", "the list")
    assert "<img src=x" in browser.run("document.querySelector('#rows').textContent")
    assert not browser.run("document.querySelectorAll('#rows img').length")

    click(browser, "sh", "Open")
    browser.wait("document.querySelector('#writes').textContent === 'you write'", "the terminal")
    browser.type("echo typed in $((6 * 7)) ways\r")
    browser.wait(f"{SHOWN}.includes('\\ntyped in 42 ways')", "what the shell answers")
    assert browser.run("document.querySelector('#state').textContent") == "InUse"
    [who] = serving.ask("who", console="sh")["attached"]
    assert (who["user"], who["writing"]) == ("op", True)
    (tmp_path / "page.png").write_bytes(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))

    # Somebody who only watches cannot type.
    browser.run("document.querySelector('#back').click()")
    click(browser, "echo", "Watch")
    browser.wait("document.querySelector('#writes').textContent === 'you read'", "the terminal")
    browser.type("nothing of this")
    serving.cli("send", "echo", "--no-enter", "from elsewhere")
    browser.wait(f"{SHOWN}.includes('from elsewhere')", "what the device says")
    assert "nothing of this" not in browser.run(SHOWN)

    browser.run("document.querySelector('#back').click()")
    click(browser, "sh", "Records")
    browser.wait("document.querySelector('#lines').textContent.includes('typed in 42 ways')", "the log")
    browser.run("document.querySelector('#speed').value = '100'")
    browser.run("document.querySelector('#records button').click()")
    replayed = "document.querySelector('#player .xterm-rows')?.textContent.includes('typed in 42 ways')"
    browser.wait(replayed, "the replay")
    browser.run("document.querySelector('#search-text').value = 'alert(1)'")
    browser.run("document.querySelector('#search-form').requestSubmit()")
    browser.wait("document.querySelector('#lines').textContent.includes('<script>alert(1)')", "what is found")
    assert browser.complaints() == []


@with_chromium
def test_what_the_page_shows_has_an_address(serving: Serving, browser: Browser) -> None:
    """To go back to, and to come back to; and what cannot be done is not offered."""
    browser.call("Page.navigate", url=f"https://127.0.0.1:{serving.web_port}/#records/sh")
    log_in(browser, "op")
    browser.wait("document.querySelector('#records-name').textContent === 'sh'", "the records")
    browser.run("document.querySelector('#search-text').value = 'nothing like that'")
    browser.run("document.querySelector('#search-form').requestSubmit()")
    browser.wait("document.querySelector('#caption').textContent === 'Nothing was found.'", "what is found")
    browser.run("history.back()")
    browser.wait("document.querySelector('#records-name').textContent === 'sh'", "the records again")
    browser.run("location.hash = '#open/nowhere'")
    browser.wait(
        "document.querySelector('#problem').textContent === 'there is no console nowhere'", "it says so"
    )
    assert browser.run("document.querySelector('#terminal').textContent") == ""
    browser.run("location.hash = '#open/sh'")
    browser.wait("document.querySelector('#writes').textContent === 'you write'", "the terminal")
    assert browser.run("document.title") == "sh"
    browser.run("window.before = true")
    browser.call("Page.reload")
    browser.wait(
        "!window.before && document.querySelector('#writes')?.textContent === 'you write'",
        "the terminal again",
    )

    # Before the machine is switched, it is asked, and said who is there.
    browser.run("window.confirm = (question) => { window.asked = question; return true; }")
    browser.run("document.querySelector('#power').value = 'cycle'")
    browser.run("document.querySelector('#power').dispatchEvent(new Event('change'))")
    browser.wait(f"{SHOWN}.includes('power cycle of sh has been accepted')", "the answer")
    asked = "Power cycle of sh? Attached to its console: op (writes, from web 127.0.0.1)."
    assert browser.run("window.asked") == asked

    # Rows of consoles that stay the same stay the same: somebody may be about to click.
    browser.run("document.querySelector('#back').click()")
    browser.wait(f"{ROWS} === 'echo,evil,sh'", "the list")
    browser.wait("document.querySelectorAll('#rows tr')[2].cells[3].textContent === ''", "nobody is at sh")
    browser.run("window.kept = document.querySelector('#rows tr')")
    serving.cli("send", "echo", "--no-enter", "more")
    time.sleep(2.5)
    assert browser.run("window.kept.isConnected")

    # One who looks on may not take writing, nor is it offered.
    browser.run("document.querySelector('#logout').click()")
    log_in(browser, "looker")
    browser.wait(f"{ROWS} === 'sh'", "the list of one who sees only this")
    browser.run("document.querySelector('#rows a').click()")
    browser.wait("document.querySelector('#writes').textContent === 'you read'", "the terminal")
    shown = "[...document.querySelectorAll('#terminal-view .bar button')].filter((one) => !one.hidden)"
    assert browser.run(f"{shown}.map((one) => one.textContent).join()") == "All consoles,Who"

    assert browser.complaints() == []

    # The server ends: the page says so, and connects again when it is told to.
    assert serving.stop() == 0
    browser.wait(f"{SHOWN}.includes('the connection has ended')", "the end")
    assert browser.run(f"{shown}.map((one) => one.textContent).join()") == "All consoles,Connect again"
    browser.run("document.querySelector('#again').click()")
    browser.wait("document.querySelector('#problem').textContent.includes('does not answer')", "it says so")
    serving.start()
    browser.run("document.querySelector('#again').click()")
    browser.wait("!document.querySelector('#login').hidden", "the login, which a server that ends forgets")
    log_in(browser, "looker")
    browser.wait("document.querySelector('#writes').textContent === 'you read'", "the terminal again")
