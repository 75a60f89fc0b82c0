"""Finding serial lines, and guessing names."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from minerva.cli.console import console
from minerva.console import discovery
from minerva.console.backends.base import BackendError
from minerva.console.discovery import Adapter, adapters, listen, suggested_name
from tests.console.strangers import far_end, line


def test_the_lines_of_a_machine(tmp_path: Path) -> None:
    dev, ttys, devices = tmp_path / "dev", tmp_path / "tty", tmp_path / "devices"
    usb = devices / "usb1" / "1-2"
    files = {
        usb / "idVendor": "0403",
        usb / "manufacturer": "FTDI",
        usb / "product": "FT232R \x1b[31m USB",
        usb / "serial": "A50285BI",
        usb / "1-2:1.0" / "ttyUSB0" / "x": "",
        ttys / "ttyS0" / "type": "4\n",
        ttys / "ttyS1" / "type": "0\n",
        ttys / "tty1" / "x": "",
        devices / "serial8250" / "x": "",
        devices / "drivers" / "serial" / "x": "",
        dev / "ttyS0": "",
        dev / "ttyS1": "",
        dev / "tty1": "",
        dev / "ttyUSB0": "",
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (devices / "serial8250" / "driver").symlink_to(devices / "drivers" / "serial")
    (ttys / "ttyUSB0").mkdir()
    (ttys / "ttyUSB0" / "device").symlink_to(usb / "1-2:1.0" / "ttyUSB0")
    for name in ("ttyS0", "ttyS1"):
        (ttys / name / "device").symlink_to(devices / "serial8250")
    for directory in ("by-path", "by-id"):
        link = dev / "serial" / directory / "usb-name"
        link.parent.mkdir(parents=True)
        link.symlink_to("../../ttyUSB0")
    assert adapters(dev, ttys) == [
        Adapter(
            str(dev / "ttyUSB0"),
            str(dev / "serial" / "by-path" / "usb-name"),
            "FTDI FT232R \\u001b[31m USB A50285BI",
        ),
        Adapter(str(dev / "ttyS0"), str(dev / "ttyS0"), "serial"),
    ]


def test_a_machine_without_lines(tmp_path: Path) -> None:
    assert adapters(tmp_path, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"\r\nDebian GNU/Linux 13 web1 ttyS0\r\n\r\nweb1 login: ", "web1"),
        (b"\x1b[2J\x1b[1;1Hdb-2.example.net login: ", "db-2.example.net"),
        (b"\r\nroot@web1:~# ", "web1"),
        (b"[admin@core ~]$ ", "core"),
        (b"sw-access-3>", "sw-access-3"),
        (b"sw1(config-if)#", "sw1"),
        (b"<HUAWEI>", "HUAWEI"),
        (b"old login: \r\nlast login: today\r\nnew login: ", "new"),
        (b"localhost login: ", None),
        (b"Password: ", None),
        (b"U-Boot 2024.01\r\n=> ", None),
        (b"\xff\xfe\x00", None),
        (b"", None),
    ],
)
def test_the_name_that_a_greeting_suggests(said: bytes, name: str | None) -> None:
    assert suggested_name(said) == name


def test_a_long_talk_is_looked_at_in_no_time() -> None:
    assert suggested_name(b"a" * 1_000_000) is None
    assert suggested_name(b"a b@" * 100_000 + b"\nweb1 login: ") == "web1"


def test_listening_to_a_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, far):
            with far_end(far) as device:
                hearing = asyncio.ensure_future(listen(str(near), speed=9600, seconds=1.0, enter=True))
                assert await device.hear(1) == b"\r"
                device.say(b"web1 login: ")
                assert await hearing == b"web1 login: "
                hearing = asyncio.ensure_future(listen(str(near), speed=9600, seconds=0.2, enter=False))
                assert await hearing == b""
                assert device.nothing_more()
        with pytest.raises(BackendError, match="is not there"):
            await listen(str(near), speed=9600, seconds=0.1, enter=True)

    asyncio.run(scenario())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Adapter("/dev/ttyX", str(tmp_path / "gone"), "an adapter \x1b")]
    monkeypatch.setattr(discovery, "adapters", lambda: lines)
    shown = CliRunner().invoke(console, ["discover"])
    lost = CliRunner().invoke(console, ["discover", "--enter"])
    assert (lost.exit_code, "--enter needs --listen" in lost.output) == (2, True)
    assert shown.exit_code == 0
    assert "an adapter \\u001b" in shown.output
    heard = CliRunner().invoke(console, ["discover", "--json", "--listen", "0.1"])
    assert json.loads(heard.output) == [
        {
            "path": str(tmp_path / "gone"),
            "device": "/dev/ttyX",
            "description": "an adapter \x1b",
            "name": "",
            "remark": f"{tmp_path}/gone is not there",
        }
    ]
    lines.clear()
    assert CliRunner().invoke(console, ["discover"]).output == "there are no serial lines here\n"
