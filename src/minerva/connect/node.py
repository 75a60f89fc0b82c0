"""From the command line to a running node, in the order that keeps secrets apart."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from minerva.connect import config as configuration
from minerva.connect import log, zygote
from minerva.connect.state import NodeState, lock_directory
from minerva.core.errors import UsageError
from minerva.pki.errors import IdentityError
from minerva.pki.identity import (
    ANCHORS_FILE,
    CERTIFICATE_FILE,
    CHAIN_FILE,
    IDEVID_DIRECTORY,
    KEY_FILE,
    Identity,
    check_own,
    finish_storing,
    load_identity,
)


def run_node(
    state_dir: Path,
    run_dir: Path,
    config_file: Path | None,
    data_plane: str | None = None,
    outer_addresses: str | None = None,
) -> None:
    """Run the node with its identity in ``state_dir`` until it is told to stop. Raises MinervaError.

    ``data_plane`` and ``outer_addresses`` are what to use in place of what the configuration says.
    """
    config = configuration.load(config_file)
    config = replace(
        config,
        data_plane=data_plane or config.data_plane,
        outer_addresses=outer_addresses or config.outer_addresses,
    )
    log.configure("supervisor", config.log_level)
    empty_root, run_lock = _prepare_run_dir(run_dir)
    # Before anything secret is read: what the zygote has in memory, every child has.
    pid, sock = zygote.start(empty_root)
    try:
        state = NodeState(state_dir)
        finish_storing(state_dir)
        identity, expired = who_we_are(state_dir, datetime.now(UTC))
        # Only now, and only here: pyroute2 costs 23 MiB, which no child needs.
        from minerva.connect.kernel_probe import choose
        from minerva.connect.supervisor import Supervisor

        async def main() -> None:
            choice = await choose(state, config.data_plane, in_udp=config.ike.may_encapsulate)
            await Supervisor(state, run_dir, config, identity, expired, (pid, sock), choice).run()

        asyncio.run(main())
    finally:
        sock.close()
        _end(pid)
        os.close(run_lock)


def _prepare_run_dir(run_dir: Path) -> tuple[Path, int]:
    """Make and lock the run directory; return the children's empty root in it, and the lock."""
    empty_root = run_dir / "empty"
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = lock_directory(
            run_dir, f"a node already runs with the run directory {run_dir}; give this one another --run-dir"
        )
        empty_root.mkdir(mode=0o555, exist_ok=True)
        for directory in (run_dir, empty_root):
            found = directory.lstat()
            if found.st_uid != 0 or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode):
                raise UsageError(f"{directory} must be a directory that only root can write to")
        if any(empty_root.iterdir()):
            raise UsageError(f"{empty_root} must be empty")
    except OSError as error:
        raise UsageError(f"cannot use the run directory {run_dir}: {error.strerror}") from error
    return empty_root, lock


def who_we_are(state_dir: Path, when: datetime) -> tuple[Identity | None, Identity | None]:
    """Return our identity, or none and the one that has expired, if there was any. Raises MinervaError."""
    device = state_dir / IDEVID_DIRECTORY
    if device.is_dir():
        _check_directory(device)
    elif not (state_dir / CERTIFICATE_FILE).exists():
        raise IdentityError(
            f"{state_dir} holds neither the certificate of a member of an ACP domain nor, in "
            f"{IDEVID_DIRECTORY}/, the device's own from its maker: get the one with "
            "`minerva registrar init` or `minerva ca issue`, the other with `minerva masa device`"
        )
    if not (state_dir / CERTIFICATE_FILE).exists():
        return None, None
    identity = load_identity(state_dir)
    _check_key_file(state_dir / KEY_FILE)
    if when > identity.certificate.not_valid_after_utc:
        return None, identity
    check_own(identity, when)
    return identity, None


def _check_directory(directory: Path) -> None:
    for name in (CERTIFICATE_FILE, CHAIN_FILE, ANCHORS_FILE):
        if not (directory / name).is_file():
            raise UsageError(f"{directory / name} is missing: get all of it with `minerva masa device`")
    _check_key_file(directory / KEY_FILE)


def _check_key_file(path: Path) -> None:
    """Check what can be checked of a key without reading it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing: {path.parent} holds cert.pem, chain.pem, key.pem and anchors.pem"
        ) from None
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others: 'chmod 600 {path}'")


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return  # ended, and reaped, before
