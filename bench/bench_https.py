"""How many requests and connections the HTTP server serves in a second of its CPU time.

Mutual TLS as in enrolment: P-256, the client with a chain of three certificates. The application answers
2,000 bytes with 1,500. Beside it, in the clear, uvicorn with the same parser, if it is there.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from _report import report
from minerva.https.client import HttpClient
from minerva.https.server import make_server_context, serve
from minerva.https.stream import TcpStream, TlsStream
from minerva.pki.ca import CertificateAuthority
from minerva.tls.context import make_context

CLIENTS = 6
HOST = "::1"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Take a request and answer it."""
    if scope["type"] != "http":
        raise NotImplementedError
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1500")]})
    await send({"type": "http.response.body", "body": bytes(1500)})


async def ours(sock: socket.socket, context: SSL.Context | None, ready: Callable[[], None]) -> None:
    """Serve for ever."""
    await serve(app, [sock], context, ready=ready, stop=asyncio.Event())


async def uvicorn(sock: socket.socket, _: SSL.Context | None, ready: Callable[[], None]) -> None:
    """Serve for ever, as uvicorn does it."""
    from uvicorn import Config, Server

    config = Config(app, http="h11", ws="none", lifespan="off", log_level="error", access_log=False)
    config.load()
    server = Server(config)
    asyncio.get_running_loop().call_later(0.3, ready)
    await server.serve(sockets=[sock])


Serve = Callable[[socket.socket, SSL.Context | None, Callable[[], None]], Awaitable[None]]


def child(how: Serve, sock: socket.socket, context: SSL.Context | None, pipe: Connection) -> None:
    """The process that serves."""
    asyncio.run(how(sock, context, lambda: pipe.send("ready")))  # type: ignore[arg-type]


def cpu(pid: int) -> float:
    """Return the time that a process has used, in seconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def ask(port: int, context: SSL.Context | None, connections: int, requests: int) -> None:
    """Be a client with so many connections, one after the other, and so many requests on each."""
    for _ in range(connections):
        sock = socket.socket(socket.AF_INET6)
        sock.setblocking(False)
        sock.connect_ex((HOST, port))
        stream = await TlsStream.client(sock, context) if context else TcpStream(sock)
        client = HttpClient(stream, HOST)
        for _ in range(requests):
            assert (await client.request("POST", "/", body=bytes(2000))).status == 200
        await client.close()


async def clients(port: int, context: SSL.Context | None, connections: int, requests: int) -> None:
    """Several at a time."""
    await asyncio.gather(*(ask(port, context, connections, requests) for _ in range(CLIENTS)))


def measure(
    how: Serve,
    server: SSL.Context | None,
    client: SSL.Context | None,
    connections: int,
    requests: int,
    runs: int,
) -> list[float]:
    """Return connections with their requests in a second of the server's CPU time, one value a run."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind((HOST, 0))
    sock.listen(128)
    fork = multiprocessing.get_context("fork")
    pipe, other = fork.Pipe()
    process = fork.Process(target=child, args=(how, sock, server, other), daemon=True)
    process.start()
    try:
        pipe.recv()
        pid, port = process.pid, sock.getsockname()[1]
        assert pid is not None
        asyncio.run(clients(port, client, 2, 10))
        values = []
        for _ in range(runs):
            before = cpu(pid)
            asyncio.run(clients(port, client, connections, requests))
            values.append(CLIENTS * connections / (cpu(pid) - before))
        return values
    finally:
        process.kill()
        process.join()
        sock.close()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        authority = CertificateAuthority.create("bench.example.com", Path(folder, "root"))
        outer = authority.issue_ca(Path(folder, "outer"))
        issued = outer.issue_ca(Path(folder, "inner")).issue()
    client = make_context(issued.certificate, issued.chain, issued.private_key)
    server = make_server_context(issued.certificate, issued.chain, issued.private_key, client="required")
    for figure, connections, requests, factor in (
        ("requests on kept connections, TLS", 1, 500, 500),
        ("connections with one request each, TLS", 50, 1, 1),
        ("enrolments: two connections with five requests, TLS", 50, 4, 1),
    ):
        values = measure(ours, server, client, connections, requests, runs)
        if figure.startswith("enrolments"):
            # The first connection has four requests, the second one.
            alone = measure(ours, server, client, 50, 1, runs)
            values = [1 / (1 / one + 1 / other) for one, other in zip(values, alone, strict=True)]
        report("https", figure, [value * factor for value in values], "1/s of CPU", "higher")
        print(figure, [round(value * factor) for value in values], file=sys.stderr)
    plain = [value * 500 for value in measure(ours, None, None, 1, 500, runs)]
    peer = None
    if find_spec("uvicorn") is not None:
        peer = [value * 500 for value in measure(uvicorn, None, None, 1, 500, runs)]
    name = "uvicorn" if peer else None
    report("https", "requests on kept connections, in the clear", plain, "1/s of CPU", "higher", name, peer)


if __name__ == "__main__":
    main()
