"""A machine for QEMU without KVM: Debian's kernel with a login at its serial line, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.console.strangers import program

KERNEL = Path(os.environ.get("QEMU", "~/.cache/minerva/qemu")).expanduser() / "vmlinuz"
ARGUMENTS = "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on"
PATIENCE = 300.0
"""How long it may take to boot: a few seconds, where nobody else is at work."""

_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox hostname guest
/bin/busybox getty -L -l /login 115200 ttyS0 vt100
/bin/busybox poweroff -f
"""
LOGIN = """\
#!/bin/busybox sh
echo "welcome $2 $1"
number=0
while read -r line; do
	case $line in
	bye) exit ;;
	"line $number of a paste") number=$((number + 1)) ;;
	*) echo "$number lines were right" ;;
	esac
done
"""
PASTE = b"".join(b"line %d of a paste\r" % number for number in range(150)) + b"how many?\r"
"""Less than the 4 KiB of a terminal's buffer, as there is no flow control."""
PASTED = b"150 lines were right"


def make(directory: Path) -> tuple[Path, Path]:
    """Put the machine's kernel and its file system into a directory; skip where there is no kernel."""
    program("qemu-system-x86_64")
    busybox = program("busybox")
    if not KERNEL.exists():
        pytest.skip(f"there is no {KERNEL}: tools/qemu-build makes one")
    root = directory / "root"
    for name in ("bin", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for name, text in (("init", _INIT), ("login", LOGIN)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    files = "\n".join(str(path.relative_to(root)) for path in root.rglob("*")).encode()
    archive = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"], cwd=root, input=files, capture_output=True, check=True
    )
    kernel, initrd = directory / "vmlinuz", directory / "initrd"
    initrd.write_bytes(archive.stdout)
    shutil.copy(KERNEL, kernel)
    return kernel, initrd


def command(directory: Path, serial: str) -> tuple[str, ...]:
    """Return what runs the machine, with its serial line there."""
    kernel, initrd = make(directory)
    return (
        program("qemu-system-x86_64"), "-accel", "tcg", "-M", "q35", "-m", "128",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(initrd), "-append", ARGUMENTS, "-serial", serial,
    )  # fmt: skip
