"""``minerva inventory``: what machines the domain has."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from minerva.asa import Asa, AsaError
from minerva.asa.inventory import Description, question
from minerva.asa.protocol import API_SOCKET
from minerva.cli import options
from minerva.cli.grasp_common import one_sentence
from minerva.cli.table import table
from minerva.core.text import printable
from minerva.grasp.api import AsaLocator, TaggedObjective
from minerva.grasp.errors import GraspError

_AT_ONCE = 32
_ANSWER_MILLISECONDS = 5000


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the inventory; ``problem`` says why it did not answer, ``None`` if it did."""

    address: str
    description: Description
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the machine as JSON would hold it."""
        what = self.description
        return {
            "address": self.address,
            "name": what.name,
            "model": what.model or None,
            "serial": what.serial or None,
            "version": what.version,
            "uptime": what.uptime,
            "problem": self.problem,
        }


async def take_inventory(path: Path, *, ask: bool = True) -> list[Machine]:
    """Return all machines that have told of themselves, each asked for its uptime if ``ask``.

    ``path`` is the node's API socket. Raises AsaError.
    """
    async with Asa.connect("inventory: command", path) as asa:
        floods = await asa.get_flood(question())
        limit = asyncio.Semaphore(_AT_ONCE)

        async def look(tagged: TaggedObjective) -> Machine | None:
            if tagged.locator is None or tagged.locator.address is None:
                return None
            async with limit:
                return await _look(asa, tagged, tagged.locator, ask=ask)

        machines = await asyncio.gather(*(look(tagged) for tagged in floods))
        return sorted((m for m in machines if m is not None), key=lambda m: (m.description.name, m.address))


async def _look(asa: Asa, tagged: TaggedObjective, locator: AsaLocator, *, ask: bool) -> Machine | None:
    try:
        described = Description.of(tagged.objective)
    except GraspError:
        return None  # it floods something else under this name
    problem = None
    if ask:
        try:
            described = Description.of(await asa.synchronize(question(), locator, _ANSWER_MILLISECONDS))
        except AsaError as error:
            problem = str(error)
        except GraspError as error:
            problem = f"it answers nonsense: {error}"
    return Machine(str(locator.address), described, problem)


@click.command()
@options.run_dir
@options.as_json
@click.option("--no-ask", is_flag=True, help="Show what the nodes have flooded, without asking each.")
def inventory(run_dir: Path, as_json: bool, no_ask: bool) -> None:
    """List all machines of the domain: name, model, serial number, version, uptime.

    Every node tells the others what it is; this one's node is asked for what it has heard, and then each
    machine for how long it has been up.
    """
    with one_sentence():
        machines = asyncio.run(take_inventory(run_dir / API_SOCKET, ask=not no_ask))
    if as_json:
        click.echo(json.dumps([machine.as_json() for machine in machines]))
        return
    head = ("NAME", "ADDRESS", "MODEL", "SERIAL", "VERSION", "UPTIME")
    rows = [
        (
            machine.description.name,
            machine.address,
            machine.description.model,
            machine.description.serial,
            machine.description.version,
            _uptime(machine.description.uptime),
        )
        for machine in machines
    ]
    click.echo(table(head, rows, "nobody has told of itself yet"))
    for machine in machines:
        if machine.problem is not None:
            click.echo(printable(f"{machine.description.name} ({machine.address}): {machine.problem}"))


def _uptime(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}d {clock}" if days else clock
