"""Revoked keys and certificates: OpenSSH's tools make the lists, and say what is in them."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

asyncssh = pytest.importorskip("asyncssh")

from minerva.console import krl, revoked  # noqa: E402
from minerva.console.config import from_table  # noqa: E402
from minerva.console.fronts import driver  # noqa: E402
from minerva.console.krl import CertSection, Credential, DecodeError, RevokedKeys, Section  # noqa: E402
from minerva.console.revoked import Revoked  # noqa: E402
from minerva.core.errors import UsageError  # noqa: E402
from tests.console.office import Line, SshOffice, until  # noqa: E402
from tests.console.test_ssh import PASSWORD, Keys, connect  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")

KINDS = {"ed25519": (), "rsa": ("-b", "2048"), "ecdsa": ("-b", "384")}
LARGEST = (1 << 64) - 1
SERIALS = (1, 5, 10, 12, 20, 21, 1000, 1003, 1008, LARGEST - 1, LARGEST)


class Authority:
    """A CA with keys and certificates of all kinds, made once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shown: dict[str, Path] = {}
        for name in ("ca", "other-ca"):
            self.keygen("-t", "ed25519", "-N", "", "-f", str(directory / name))
        for kind, options in KINDS.items():
            self.keygen("-t", kind, *options, "-N", "", "-f", str(directory / kind))
            self.shown[kind] = directory / f"{kind}.pub"
            for ca in ("ca", "other-ca"):
                self.sign(ca, kind, f"id {kind}", 0)
        for ca in ("ca", "other-ca"):
            for serial in SERIALS:
                self.sign(ca, "ed25519", "person", serial)

    def keygen(self, *arguments: str) -> None:
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True)

    def sign(self, ca: str, key: str, identity: str, serial: int) -> None:
        """Make a certificate."""
        name = f"{key} of {ca} {serial}"
        path = self.directory / f"{name}.pub"
        shutil.copy(self.directory / f"{key}.pub", path)
        self.keygen("-s", str(self.directory / ca), "-I", identity, "-n", "x", "-z", str(serial), str(path))
        self.shown[name] = self.directory / f"{name}-cert.pub"

    def credential(self, name: str) -> Credential:
        """Return what somebody shows."""
        return Credential.decode(base64.b64decode(self.shown[name].read_text().split()[1]))

    def krl(self, into: Path, text: str, ca: str = "ca") -> bytes:
        """Have ssh-keygen make a list."""
        spec = into / "spec"
        spec.write_text(text)
        path = into / "krl"
        path.unlink(missing_ok=True)
        authority = ca if ca == "none" else str(self.directory / f"{ca}.pub")
        self.keygen("-k", "-f", str(path), "-s", authority, str(spec))
        return path.read_bytes()

    def revoked(self, path: Path) -> set[str]:
        """Return which of all are revoked, as ssh-keygen has it."""
        return {
            name
            for name, shown in self.shown.items()
            if subprocess.run(
                ["ssh-keygen", "-Q", "-f", str(path), str(shown)], capture_output=True, check=False
            ).returncode
        }


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def digest(path: Path, kind: str) -> str:
    """Return the digest of a key as ssh-keygen shows it."""
    shown = subprocess.run(["ssh-keygen", "-l", "-E", kind, "-f", str(path)], capture_output=True, check=True)
    return shown.stdout.decode().split()[1]


@pytest.mark.parametrize("ca", ["ca", "none"])
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("serial: 5\n", 1),
        ("serial: 5\nserial: 1003\nserial: 900000\n", 2),
        ("serial: 10-20\n", 3),
        (f"serial: 1-{LARGEST}\n", 11),
        (f"serial: {LARGEST}\n", 1),
        ("".join(f"serial: {serial}\n" for serial in range(1000, 1030, 3)), 2),  # a bitmap
        ("".join(f"serial: {serial}\n" for serial in (*range(1, 400, 2), 1000)), 4),
        ("id: person\n", 11),
        ("id: id rsa\nid: nobody\n", 1),
    ],
)
def test_certificates_by_what_they_say(
    authority: Authority, tmp_path: Path, text: str, count: int, ca: str
) -> None:
    """Serial numbers one by one, in ranges and bitmaps, and ids; of one CA, or of all."""
    found = RevokedKeys.decode(authority.krl(tmp_path, text, ca))
    ours = {name for name in authority.shown if authority.credential(name) in found}
    assert ours == authority.revoked(tmp_path / "krl")
    assert len(ours) == count * (2 if ca == "none" else 1)


def test_bitmaps_are_really_there(authority: Authority, tmp_path: Path) -> None:
    """The vectors above have all kinds of sections."""
    seen = set()
    for text in (
        "serial: 5\nserial: 900000\n",
        "serial: 10-2000\n",
        "".join(f"serial: {serial}\n" for serial in range(1000, 1030, 3)),
        "id: x\n",
    ):
        reader = krl.Reader(authority.krl(tmp_path, text))
        reader.take(36)
        reader.string()
        reader.string()
        assert reader.number(1) == Section.CERTIFICATES
        section = krl.Reader(reader.string())
        section.string()
        section.string()
        while section.more:
            seen.add(section.number(1))
            section.string()
    assert seen == set(CertSection) - {CertSection.EXTENSION}


@pytest.mark.parametrize("name", [*KINDS, "ca"])
@pytest.mark.parametrize("how", ["key", "sha1", "sha256", "hash", "text", "digest"])
def test_keys(authority: Authority, tmp_path: Path, name: str, how: str) -> None:
    """A key takes its certificates with it, and a CA all that it has signed."""
    path = authority.directory / f"{name}.pub"
    key = path.read_text()
    if how == "text":
        data = f"# lost\n\n{key}".encode()
    elif how == "digest":
        data = f"{digest(path, 'sha256')} lost\r\n".encode()
    elif how == "hash":
        data = authority.krl(tmp_path, f"hash: {digest(path, 'sha256')}\n")
    else:
        data = authority.krl(tmp_path, f"{how}: {key}")
    found = RevokedKeys.decode(data)
    ours = {each for each in authority.shown if authority.credential(each) in found}
    expected = {each for each in authority.shown if each.split()[0] == name or f" of {name} " in each}
    assert ours == expected
    assert expected
    if how in ("text", "digest"):  # ssh-keygen looks into KRLs only
        return
    (tmp_path / "list").write_bytes(data)
    assert ours == authority.revoked(tmp_path / "list")


def test_a_certificate_is_what_asyncssh_has_it(authority: Authority) -> None:
    """That is who decides whether it is good."""
    for name, path in authority.shown.items():
        blob = base64.b64decode(path.read_text().split()[1])
        ours = Credential.decode(blob)
        if " of " not in name:
            assert ours == Credential(blob)
            continue
        theirs = asyncssh.public_key.decode_ssh_certificate(blob)
        assert ours == Credential(
            theirs.key.public_data,
            theirs.signing_key.public_data,
            theirs._serial,
            theirs._key_id.encode(),
        )


@pytest.mark.parametrize("kind", ["sk-ssh-ed25519", "sk-ecdsa-sha2-nistp256", "ssh-ed448"])
def test_certificates_of_other_keys(kind: str) -> None:
    """Security keys have more fields; asyncssh makes the certificate, since there is no security key here."""
    ca = asyncssh.generate_private_key("ssh-ed25519")
    if kind == "ssh-ed448":
        key = asyncssh.generate_private_key("ssh-ed448")
    else:
        words = [f"{kind}@openssh.com".encode()]
        if "ecdsa" in kind:
            point = asyncssh.generate_private_key("ecdsa-sha2-nistp256").public_data[-65:]
            words += [b"nistp256", point, b"ssh:"]
        else:
            words += [asyncssh.generate_private_key("ssh-ed25519").public_data[-32:], b"ssh:"]
        blob = b"".join(len(word).to_bytes(4) + word for word in words)
        key = asyncssh.import_public_key(words[0] + b" " + base64.b64encode(blob))
    made = ca.generate_user_certificate(key, "somebody", serial=77, principals=["x"])
    expected = Credential(key.public_data, ca.public_data, 77, b"somebody")
    assert Credential.decode(made.public_data) == expected


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def a_list(*sections: bytes, version: int = 1) -> bytes:
    return krl.MAGIC + version.to_bytes(4) + bytes(24) + string(b"") * 2 + b"".join(sections)


def section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + string(data)


def certificates(kind: int, data: bytes, ca: bytes = b"CA") -> bytes:
    return section(1, string(ca) + string(b"") + section(kind, data))


def number(value: int) -> bytes:
    return value.to_bytes(8)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (krl.MAGIC, "ends in the middle"),
        (a_list(version=2), "version 2"),
        (a_list(b"\x01"), "ends in the middle"),
        (a_list(section(9, b"")), "unknown type 9"),
        (a_list(section(2, string(b""))), "wrong length"),
        (a_list(section(2, b"\xff\xff\xff\xff")), "ends in the middle"),
        (a_list(section(3, string(bytes(19)))), "wrong length"),
        (a_list(section(5, string(bytes(33)))), "wrong length"),
        (a_list(section(4, b"key")), "ends in the middle"),
        (a_list(section(255, string(b"new") + b"\x01" + string(b""))), "critical extension b'new'"),
        (a_list(certificates(0x39, string(b"new") + b"\x01" + string(b""))), "critical extension b'new'"),
        (a_list(certificates(0x24, b"")), "unknown type 36"),
        (a_list(certificates(0x20, number(0))), "0 is no serial"),
        (a_list(certificates(0x20, b"\0")), "ends in the middle"),
        (a_list(certificates(0x21, number(5) + number(4))), "ends before it begins"),
        (a_list(certificates(0x21, number(5) + number(6) + b"x")), "after its end"),
        (a_list(certificates(0x22, number(5) + string(b"\x80"))), "negative"),
        (a_list(certificates(0x22, number(5) + string(bytes(krl.MAX_BITMAP + 1)))), "too long"),
        (b"ssh-ed25519\n", "line 1"),
        (b"\nssh-ed25519 AAAA\n", "line 2"),
        (b"ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJWX7cKT8UVTc2S8VsVpdYaR0u/Hc2G9Tt6lkwmNFAxJ\n", "line 1"),
        (b"SHA256:AAAA", "line 1"),
        (b"serial: 5", "line 1"),
        (b"\0\1\2", "line 1"),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        RevokedKeys.decode(data)


def test_what_may_be_passed_over_is() -> None:
    harmless = string(b"new") + b"\0" + string(b"whatever")
    data = a_list(
        section(255, harmless),
        section(4, b"key") + string(b"signature"),
        certificates(0x39, harmless),
        certificates(0x22, number(LARGEST - 1) + string(b"\x7f\xff")),
        certificates(0x20, number(7)),
    )
    found = RevokedKeys.decode(data)
    for serial, inside in ((LARGEST - 2, False), (LARGEST - 1, True), (LARGEST, True), (7, True), (8, False)):
        assert (Credential(b"k", b"CA", serial) in found) is inside
    # A certificate without a number is not the one with the number 0.
    assert Credential(b"k", b"CA", 0) not in found
    assert Credential(b"k", b"another CA", 7) not in found


def test_no_list_is_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krl, "MAX_ENTRIES", 10)
    for data in (
        b"SHA256:" + base64.b64encode(bytes(32)) + b"\n",
        section(2, string(b"x") * 11),
        certificates(0x20, number(7) * 11),
        certificates(0x23, string(b"") * 11),
        certificates(0x21, number(7) * 2) * 11,
    ):
        whole = a_list(data) if data[0] < 32 else data * 11
        with pytest.raises(DecodeError, match="more than 10 entries"):
            RevokedKeys.decode(whole)


@given(ranges=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=12))
def test_ranges_that_overlap(ranges: list[tuple[int, int]]) -> None:
    data = [certificates(0x21, number(low) + number(low + more)) for low, more in ranges]
    found = RevokedKeys.decode(a_list(*data))
    for serial in range(1, 80):
        inside = any(low <= serial <= low + more for low, more in ranges)
        assert (Credential(b"k", b"CA", serial) in found) is inside


@given(data=st.data())
def test_whatever_comes_only_one_error_does(authority: Authority, data: st.DataObject) -> None:
    """Lists and certificates that somebody has tampered with."""
    whole = a_list(
        section(2, string(b"key")),
        section(5, string(bytes(32))),
        certificates(0x20, number(1) + number(2)),
        certificates(0x22, number(1) + string(b"\x01")),
        certificates(0x23, string(b"id")),
    )
    blob = base64.b64decode(authority.shown["rsa of ca 0"].read_text().split()[1])
    for decode, good in ((RevokedKeys.decode, whole), (Credential.decode, blob)):
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(bad)))
        for tampered in (bytes(bad), bytes(bad[:cut])):
            with suppress(DecodeError):
                decode(tampered)


# -- the file


@pytest.fixture
def a_key() -> Credential:
    return Credential(string(b"ssh-ed25519") + string(bytes(32)))


def line(shown: Credential) -> bytes:
    return b"ssh-ed25519 " + base64.b64encode(shown.key) + b"\n"


def test_the_file_is_read_whenever_it_is_another_one(
    tmp_path: Path, a_key: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nobody can log in with a key; sessions that there are go by the last one that was good."""
    path = tmp_path / "revoked"
    other = Credential(b"another")
    with caplog.at_level(logging.INFO):
        keys = Revoked(str(path))
        assert "has not been read yet" in keys.refuses(other)
        keys.look()
        assert keys.refuses(other) == (
            f"keys are not taken: the list of revoked keys {path} cannot be used: No such file or directory"
        )
        assert not keys.has(a_key)
        path.write_bytes(line(a_key))
        keys.look()
        assert keys.refuses(a_key) == "the key or certificate is revoked"
        assert keys.refuses(other) == ""
        assert [keys.has(each) for each in (a_key, other)] == [True, False]
        path.write_bytes(b"nonsense")
        keys.look()
        assert "line 1 is neither" in keys.refuses(other)
        keys.look()
        assert keys.has(a_key)
        path.write_bytes(b"")
        keys.look()
        assert keys.refuses(a_key) == ""
        assert not keys.has(a_key)
    assert caplog.text.count("nobody can log in") == 2
    assert caplog.text.count("1 entries of revoked keys") == 1


def refusal(path: Path, shown: Credential) -> str:
    keys = Revoked(str(path))
    keys.look()
    return keys.refuses(shown)


def test_strange_files(tmp_path: Path, a_key: Credential, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "it is no file" in refusal(tmp_path / "pipe", a_key)
    assert "Is a directory" in refusal(tmp_path, a_key)
    monkeypatch.setattr(revoked, "MAX_SIZE", 1 << 20)
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    assert "more than 1 MiB" in refusal(tmp_path / "large", a_key)
    assert Revoked("").refuses(a_key) == ""
    with pytest.raises(UsageError, match="must be a file, and begin with /"):
        from_table({"access": {"revoked": "krl"}}, "console")


def test_logins_and_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is revoked is not let in, and what is in ends; whoever came otherwise is not concerned."""
    monkeypatch.setattr(driver, "REVIEW_SECONDS", 0.1)
    monkeypatch.setattr(revoked, "LOOK_SECONDS", 0.05)
    keys = Keys(tmp_path)
    path = tmp_path / "list"
    path.write_bytes(b"")
    table = {
        "users": {
            "will": {"keys": [keys.make("will")], "write": ["*"]},
            "carl": {"write": ["*"]},
            "walt": {"write": ["*"], "password": PASSWORD},
        },
        "access": {"user_ca": [keys.make("authority")], "failures": 100, "revoked": str(path)},
    }
    keys.make("carl")
    keys.sign("authority", "carl", "-n", "carl", "-z", "42")

    async def test(office: SshOffice) -> None:
        async def attached(name: str, **options: object) -> tuple[object, object]:
            connection = await connect(office, name, **options)
            return connection, await connection.create_process(term_type="vt100")

        async def is_refused(name: str) -> None:
            with pytest.raises(asyncssh.PermissionDenied):
                await connect(office, name, client_keys=[keys.path(name.split(":")[0])])

        hub = office.lines.lines["rack1"].hub
        held = [
            await attached("will:rack1", client_keys=[keys.path("will")]),
            await attached("carl:rack1", client_keys=[keys.path("carl")]),
            await attached("walt:rack1", password="open sesame"),
        ]
        await until(lambda: len(hub.who()) == 3)
        spec = tmp_path / "spec"
        spec.write_text("serial: 42\n")
        made = ["ssh-keygen", "-q", "-k", "-f", str(tmp_path / "krl"), "-s", keys.path("authority") + ".pub"]
        subprocess.run([*made, str(spec)], check=True)
        (tmp_path / "krl").replace(path)
        await until(lambda: [who.user for who in hub.who()] == ["will", "walt"])
        await is_refused("carl:rack1")
        (await connect(office, "will:rack1", client_keys=[keys.path("will")])).abort()
        path.unlink()
        await is_refused("will:rack1")
        await asyncio.sleep(0.3)
        assert [who.user for who in hub.who()] == ["will", "walt"]
        path.write_text(Path(keys.path("will") + ".pub").read_text())
        await until(lambda: [who.user for who in hub.who()] == ["walt"])
        await is_refused("will:rack1")
        (await connect(office, "walt:rack1", password="open sesame")).abort()
        for connection, _ in held:
            connection.abort()  # type: ignore[attr-defined]
        refused = [
            each["detail"]
            for each in await office.entries()
            if each["action"] == "login" and not each["allowed"]
        ]
        assert any("number 42" in each and each.endswith("is revoked") for each in refused)
        assert any("cannot be used: No such file" in each for each in refused)

    async def main() -> None:
        async with SshOffice(tmp_path / "console", table, [Line("rack1")]) as office, asyncio.timeout(60):
            watching = asyncio.ensure_future(revoked.watch(lambda: office.access.revoked))
            await test(office)
            watching.cancel()

    (tmp_path / "console").mkdir()
    asyncio.run(main())
