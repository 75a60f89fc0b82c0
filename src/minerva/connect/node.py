"""From the command line to a running node, in the order that keeps secrets apart."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from datetime import UTC, datetime
from pathlib import Path

from minerva.connect import config as configuration
from minerva.connect import log, zygote
from minerva.connect.state import NodeState, lock_directory
from minerva.core.errors import UsageError
from minerva.pki.identity import check_own, load_identity


def run_node(state_dir: Path, run_dir: Path, config_file: Path | None, data_plane: str | None = None) -> None:
    """Run the node with its identity in ``state_dir`` until it is told to stop. Raises MinervaError.

    ``data_plane`` is what to use in place of what the configuration says.
    """
    config = configuration.load(config_file)
    log.configure("supervisor", config.log_level)
    empty_root, run_lock = _prepare_run_dir(run_dir)
    # Before anything secret is read: what the zygote has in memory, every child has.
    pid, sock = zygote.start(empty_root)
    try:
        state = NodeState(state_dir)
        identity = load_identity(state_dir)
        check_own(identity, datetime.now(UTC))
        _check_key_file(state_dir / "key.pem")
        # Only now, and only here: pyroute2 costs 23 MiB, which no child needs.
        from minerva.connect.kernel_probe import choose
        from minerva.connect.supervisor import Supervisor

        async def main() -> None:
            choice = await choose(state, data_plane or config.data_plane)
            await Supervisor(state, run_dir, config, identity, (pid, sock), choice).run()

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


def _check_key_file(path: Path) -> None:
    """Check what can be checked of a key without reading it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing: a node directory holds cert.pem, chain.pem, key.pem and anchors.pem"
        ) from None
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others: 'chmod 600 {path}'")


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return  # ended, and reaped, before
