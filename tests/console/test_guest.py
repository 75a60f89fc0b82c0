"""The console of a machine from its boot to a login and its end: a guest of User Mode Linux."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from minerva.console.backends.process import ProcessBackend
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import ProcessPort
from minerva.console.runner import Runner
from minerva.core.backoff import Backoff
from tests.console.strangers import until

KERNEL = Path(os.environ.get("UML", "~/.cache/minerva/uml")).expanduser() / "usr/bin/linux.uml"
BUSYBOX = Path("/bin/busybox")
NOW = 1000.0

INIT = """\
#!/bin/busybox sh
/bin/busybox hostname guest
/bin/busybox getty -L -l {directory}/login 115200 tty0 vt100
/bin/busybox poweroff -f
"""
LOGIN = """\
#!/bin/busybox sh
echo "welcome $2 $1"
while read -r line; do
	[ "$line" = bye ] && exit
	echo "you said: $line"
done
"""


@pytest.mark.skipif(not KERNEL.exists(), reason=f"there is no {KERNEL}: tools/uml-build makes one")
@pytest.mark.skipif(not BUSYBOX.exists(), reason="there is no busybox: apt-get install busybox-static")
def test_a_guest_from_boot_to_login(tmp_path: Path) -> None:
    for name, text in (("init", INIT), ("login", LOGIN)):
        (tmp_path / name).write_text(text.format(directory=tmp_path) if name == "init" else text)
        (tmp_path / name).chmod(0o755)
    command = (
        str(KERNEL), "mem=64M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        "con=null", "con0=fd:0,fd:1", "panic=-1", f"init={tmp_path}/init",
    )  # fmt: skip

    async def scenario() -> None:
        hub = Hub("guest")
        runner = Runner(hub, ProcessBackend(ProcessPort(command=command)), backoff=Backoff(2, 2))
        reader = hub.attach("ben", now=NOW)
        runner.start()
        try:
            await until(lambda: b"guest login: " in hub.tail(100_000), "the guest boots", 60)
            assert b"Linux version" in hub.tail(100_000)
            ann = hub.attach("ann", mode=Mode.WRITE, replay=100_000, now=NOW)
            hub.input(ann, b"root\r", NOW)
            await until(lambda: b"welcome root" in hub.tail(1000), "it lets us in")
            # Less than the 4 KiB of a terminal's buffer: User Mode Linux sometimes does not go on after that.
            paste = b"".join(b"line %d of a paste\r" % number for number in range(150))
            hub.input(ann, paste, NOW)
            await until(lambda: b"you said: line 149 of" in hub.tail(1000), "it gets all of the paste")
            said = hub.tail(100_000)
            assert [number for number in range(150) if b"you said: line %d of" % number not in said] == []
            hub.input(ann, b"bye\r", NOW)
            await until(lambda: hub.times_up == 2 or hub.state is State.DOWN, "the guest ends", 60)
            assert "has ended with status" in hub.reason
            # It is started again, and who is attached sees that.
            await until(lambda: hub.tail(200_000).count(b"guest login: ") == 2, "it boots again", 60)
            seen = b""
            while (item := hub.read(reader)) is not None:
                seen += item if isinstance(item, bytes) else b""
            assert seen.count(b"guest login: ") == 2
        finally:
            await runner.stop()

    asyncio.run(scenario())
