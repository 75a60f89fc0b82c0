"""Who has which secret in its memory, and what else a child could do with it: searched for in a real node."""

from __future__ import annotations

import base64
import os
import re
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from minerva.connect.zygote import ROLES
from tests.lab.attacker import StandingLab, run, standing_lab, until

pytestmark = pytest.mark.root

CHILDREN = tuple(role for role in ROLES if role != "pledge")  # those of a member
ALONE = ("signer", "abutment", "data-plane")
"""Those that live in a network namespace with nothing in it."""

WITH_KEY = ("signer", "plane")
"""Those that must have the key: for IKE, and for TLS inside the ACP. Neither reads what strangers send."""

CHUNK = 4 << 20


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    """Two nodes with a channel, so that the key has been used."""
    with standing_lab("line:2", "keys", tmp_path_factory.mktemp("labs")) as lab:
        yield lab


@pytest.fixture(scope="module")
def pids(lab: StandingLab) -> dict[str, int]:
    """The processes of n1, whose children nobody kills here."""
    return {name: process["pid"] for name, process in lab.processes("n1").items()}


@dataclass(frozen=True)
class Canaries:
    """What to search for: every form in which the key may lie in memory, and the node's secret."""

    key: dict[str, bytes]
    node_secret: bytes


def canaries(state: Path) -> Canaries:
    pem = (state / "key.pem").read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value.to_bytes(32)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert scalar in der
    lines = pem.splitlines()
    assert scalar[:8] in base64.b64decode(lines[1] + lines[2])
    forms = {
        "scalar": scalar,
        "scalar, little-endian": scalar[::-1],
        "scalar in hexadecimal": scalar.hex().encode(),
        "scalar in decimal": str(key.private_numbers().private_value).encode(),
        "DER": der[: der.index(scalar) + 8],
        "PEM": lines[1],
    }
    return Canaries(forms, (state / "node-secret").read_bytes())


def memory(pid: int) -> Iterator[bytes]:
    """Yield all that can be read of a process's memory, in pieces that overlap."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in maps:
            span, permissions, *rest = line.split()
            if permissions[0] != "r" or rest[-1] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            tail = b""
            while start < end:
                file.seek(start)
                piece = file.read(min(CHUNK, end - start))
                assert piece, f"cannot read {line}"
                yield tail + piece
                tail, start = piece[-256:], start + len(piece)


def holders(lab: StandingLab, node: str) -> dict[str, set[str]]:
    """Return by process what was found in its memory."""
    wanted = canaries(lab.state_dir(node))
    needles = wanted.key | {"node secret": wanted.node_secret}
    found: dict[str, set[str]] = {}
    for name, process in lab.processes(node).items():
        found[name] = set()
        seen = 0
        for piece in memory(process["pid"]):
            seen += len(piece)
            found[name] |= {what for what, needle in needles.items() if needle in piece}
        assert seen > 8 << 20, f"only {seen} bytes of {name} could be read"
    return found


def check_holders(lab: StandingLab, node: str) -> None:
    found = holders(lab, node)
    assert set(found) == {"supervisor", "zygote", *CHILDREN}
    # That it is found there shows that the search finds it.
    for name in WITH_KEY:
        assert found[name] & {"scalar", "scalar, little-endian"}
        assert "node secret" not in found[name]
    assert found["supervisor"] == {"node secret"}
    others = {name: what for name, what in found.items() if name not in (*WITH_KEY, "supervisor")}
    assert not any(others.values()), f"secrets in the wrong memory: {others}"


def test_only_the_signer_and_the_plane_have_the_key(lab: StandingLab) -> None:
    check_holders(lab, "n1")


def test_nor_has_anybody_else_after_all_children_were_killed(lab: StandingLab) -> None:
    before = lab.processes("n2")
    for name in CHILDREN:
        os.kill(before[name]["pid"], signal.SIGKILL)

    def all_new() -> bool:
        now = lab.processes("n2")
        return all(now[name]["pid"] not in (None, before[name]["pid"]) for name in CHILDREN)

    until(all_new, "all children were started again")
    until(lambda: lab.channels("n2"), "there is a channel again")
    until(lambda: (lab.status("n2")["counters"]["signer"] or {}).get("signed"), "the new signer has signed")
    check_holders(lab, "n2")


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("role", CHILDREN)
def test_a_child_can_do_nothing(pids: dict[str, int], role: str) -> None:
    pid = pids[role]
    status = status_of(pid)
    uid = ROLES[role][1]
    assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    # Not dumpable: its files in /proc are root's, and nobody of the same user can trace it.
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


def test_users_are_different() -> None:
    assert len({uid for _, uid in ROLES.values()}) == len(ROLES)
    assert all(65_510 <= uid <= 65_515 for _, uid in ROLES.values())


@pytest.mark.parametrize("role", CHILDREN)
def test_a_child_has_no_files(lab: StandingLab, pids: dict[str, int], role: str) -> None:
    pid = pids[role]
    assert (Path(f"/proc/{pid}/root").readlink()) == lab.run_dir("n1") / "empty"
    assert list(Path(f"/proc/{pid}/root").iterdir()) == []
    assert Path(f"/proc/{pid}/root").stat().st_uid == 0
    assert Path(f"/proc/{pid}/root").stat().st_mode & 0o022 == 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target, mode = str(descriptor.readlink()), descriptor.stat().st_mode
        if descriptor.name in "12":
            continue  # where the log goes: what the supervisor's standard error is
        assert not stat.S_ISDIR(mode), f"{role} has the directory {target} open"
        assert not stat.S_ISBLK(mode), f"{role} has the disk {target} open"
        if stat.S_ISREG(mode):
            assert target.startswith("/memfd:"), f"{role} has the file {target} open"


@pytest.mark.parametrize("role", ALONE)
def test_a_child_that_reads_what_strangers_send_has_no_network(pids: dict[str, int], role: str) -> None:
    """Its sockets were given to it; it cannot make one that reaches anything."""
    own = network_of(pids[role])
    named = {path.stat().st_ino for path in Path("/run/netns").iterdir()}
    others = {network_of(pid) for name, pid in pids.items() if name != role}
    assert own not in named | others | {network_of(os.getpid())}
    for link in run("nsenter", f"--net=/proc/{pids[role]}/ns/net", "ip", "-o", "link").splitlines():
        flags = link.partition("<")[2].partition(">")[0].split(",")
        assert "UP" not in flags, f"{role} has a network: {link}"
    for table in ("tcp6", "udp6", "raw6", "tcp", "udp", "raw"):
        _, *entries = Path(f"/proc/{pids[role]}/net/{table}").read_text().splitlines()
        assert entries == [], f"{role} has sockets in its own namespace"


def network_of(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino
