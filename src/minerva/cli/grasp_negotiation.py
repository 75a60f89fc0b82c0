"""``minerva grasp negotiate`` and ``listen``: both sides of a negotiation, from a console."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from minerva.asa import Asa, Session, blocking
from minerva.asa.protocol import API_SOCKET
from minerva.cli import options
from minerva.cli.grasp_common import (
    LOOP_COUNT,
    GraspCommandError,
    asa_name,
    cbor_option,
    milliseconds,
    objective_argument,
    objective_json,
    one_sentence,
    peer_locator,
    peer_option,
    print_line,
    registered,
    timeout_option,
    until_interrupted,
)
from minerva.cli.values import parse, quoted, shown
from minerva.core.errors import UsageError
from minerva.core.text import printable
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode
from minerva.grasp.constants import GRASP_DEF_LOOPCT, ObjectiveFlag
from minerva.grasp.options import NO_VALUE, Objective
from minerva.grasp.text import json_data, json_text

# --- negotiate -------------------------------------------------------------------------------------------


@click.command(short_help="Ask a node for a value, and bargain.")
@options.run_dir
@options.as_json
@objective_argument
@click.argument("value", required=False)
@cbor_option
@peer_option
@timeout_option(60.0)
@click.option("--accept", is_flag=True, help="Accept whatever is offered.")
@click.option(
    "--accept-within",
    type=options.FiniteRange(0),
    metavar="N",
    help="Accept a number that is not further than N from VALUE, insist on VALUE till then.",
)
@click.option("--dry", is_flag=True, help="A dry run: agree, but change nothing.")
@click.option(
    "--loop-count", type=LOOP_COUNT, default=GRASP_DEF_LOOPCT, show_default=True, help="Offers, at most."
)
def negotiate(
    run_dir: Path,
    as_json: bool,
    objective: str,
    value: str | None,
    in_cbor: str | None,
    peer: str | None,
    timeout: float,
    accept: bool,
    accept_within: float | None,
    dry: bool,
    loop_count: int,
) -> None:
    """Ask a node for VALUE of OBJECTIVE. At a terminal, counter-offers are put to you."""
    wanted = parse(value, in_cbor)
    if wanted is NO_VALUE:
        raise UsageError("give the VALUE to ask for, or --cbor")
    if accept and accept_within is not None:
        raise UsageError("give --accept or --accept-within, not both")
    if accept_within is not None and not _is_number(wanted):
        raise UsageError(f"--accept-within needs a number to ask for, not {quoted(shown(wanted))}")
    where = peer_locator(peer)
    flags = ObjectiveFlag.F_NEG | (ObjectiveFlag.F_NEG_DRY if dry else ObjectiveFlag(0))
    steps: list[dict[str, Any]] = []

    def say(by: str, offer: Any) -> None:
        steps.append({"by": by, "value": json_data(offer)})
        if not as_json:
            print_line(f"{'we ask for' if by == 'us' else 'the peer offers'} {shown(offer)}")

    with registered(run_dir, "negotiate") as asa:
        say("us", wanted)
        asked = Objective(objective, flags, loop_count, wanted)
        with _begun(asa, asked, where, milliseconds(timeout)) as session:
            while not session.ended:
                say("peer", session.value)
                if accept or (accept_within is not None and _is_near(session.value, wanted, accept_within)):
                    session.accept()
                elif accept_within is not None:
                    say("us", wanted)
                    session.offer(wanted, milliseconds(timeout))
                elif sys.stdin.isatty() and not as_json:
                    _put_to_user(session, say, milliseconds(timeout))
                else:
                    session.decline("nobody is here to consider it")
                    raise GraspCommandError(
                        f"declined the counter-offer {shown(session.value)}; "
                        "--accept or --accept-within would have considered it"
                    )
    if as_json:
        print_line(json_text({"objective": objective, "agreed": json_data(session.value), "steps": steps}))
    else:
        print_line(f"agreed on {shown(session.value)}")


def _begun(asa: blocking.Asa, asked: Objective, where: AsaLocator | None, timeout: int) -> blocking.Session:
    """Return the session that has begun with the peer's first answer. Raises AsaError, GraspCommandError."""
    try:
        return asa.negotiate(asked, where, timeout)
    except AsaError as error:
        if error.code is not ErrorCode.noPeer:
            raise
        # So a node ends a request for what it does not negotiate (RFC 8990 section 2.5.5).
        raise GraspCommandError(
            f"the peer closed the connection without an answer: nobody there negotiates {quoted(asked.name)}"
        ) from error


def _put_to_user(session: blocking.Session, say: Callable[[str, Any], None], timeout: int) -> None:
    """Let whoever sits at the terminal accept, decline, or make the next offer."""
    while True:
        answer = click.prompt("accept, decline, or a value", default="accept").strip()
        if answer in ("accept", "a"):
            session.accept()
            return
        if answer in ("decline", "d"):
            session.decline("declined by the operator")
            raise GraspCommandError(f"declined the offer {shown(session.value)}")
        try:
            value = parse(answer)
        except UsageError as error:
            click.echo(str(error), err=True)
            continue
        say("us", value)
        session.offer(value, timeout)
        return


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_near(offer: Any, wanted: Any, distance: float) -> bool:
    return _is_number(offer) and abs(offer - wanted) <= distance


# --- listen ----------------------------------------------------------------------------------------------


@click.command(short_help="Answer requests of other nodes.")
@options.run_dir
@options.as_json
@objective_argument
@click.option("--value", metavar="VALUE", help="What synchronization requests are answered with.")
@cbor_option
@click.option(
    "--sync/--negotiate", "synchronizes", default=None, help="What is answered, if it is not clear."
)
@click.option("--accept", is_flag=True, help="Accept what is asked for.")
@click.option("--decline", is_flag=True, help="Decline it.")
@click.option("--counter", metavar="VALUE", help="Offer VALUE instead, and insist on it.")
@click.option("--reason", help="With --decline: why.")
@click.option("--count", type=click.IntRange(1), help="End after so many negotiations.")
def listen(
    run_dir: Path,
    as_json: bool,
    objective: str,
    value: str | None,
    in_cbor: str | None,
    synchronizes: bool | None,
    accept: bool,
    decline: bool,
    counter: str | None,
    reason: str | None,
    count: int | None,
) -> None:
    """Answer requests for OBJECTIVE until Ctrl-C: with --value, or by negotiation.

    To synchronize: --value. To negotiate: --accept, --decline or --counter.
    """
    policies = [
        policy
        for policy, wanted in (("accept", accept), ("decline", decline), ("counter", counter is not None))
        if wanted
    ]
    if len(policies) > 1:
        raise UsageError(f"give --{policies[0]} or --{policies[1]}, not both")
    negotiates = bool(policies)
    given = parse(value, in_cbor, name="--value")
    if reason is not None and not decline:
        raise UsageError("--reason goes with --decline")
    if synchronizes is False and not negotiates and given is not NO_VALUE:
        counter, given, negotiates = json_text(json_data(given)), NO_VALUE, True
        policies = ["counter"]
    if negotiates and (synchronizes or given is not NO_VALUE):
        raise UsageError("an objective is for synchronization (--value) or for negotiation, not for both")
    if not negotiates and (synchronizes is False or given is NO_VALUE):
        raise UsageError("say how to answer: --value VALUE, or --accept, --decline or --counter VALUE")
    if count is not None and not negotiates:
        raise UsageError("--count counts negotiations: it does not go with --value")
    path = run_dir / API_SOCKET
    with one_sentence(), until_interrupted(True):
        if negotiates:
            offer = parse(counter, name="--counter")
            told = Objective(objective, ObjectiveFlag.F_NEG)
            responder = _Responder(policies[0], offer, reason or None, as_json)
            asyncio.run(_answer_negotiations(path, told, responder, count))
        else:
            told = Objective(objective, ObjectiveFlag.F_SYNCH, value=given)
            asyncio.run(_answer_synchronization(path, told, as_json))


async def _answer_synchronization(path: Path, told: Objective, as_json: bool) -> None:
    async with Asa.connect(asa_name("listen"), path) as asa:
        await asa.register_objective(told)
        await asa.listen_synchronize(told)
        if as_json:
            print_line(json_text({"event": "listening", **objective_json(told)}))
        else:
            print_line(f"answering requests for {printable(told.name)} with {shown(told.value)}")
        await asa.grasp.wait_closed()
        raise AsaError(ErrorCode.noSocket, "the node has ended")


async def _answer_negotiations(path: Path, told: Objective, responder: _Responder, count: int | None) -> None:
    under_way: set[asyncio.Task[None]] = set()
    async with Asa.connect(asa_name("listen"), path) as asa:
        await asa.register_objective(told)
        listening = asyncio.ensure_future(asa.listen_negotiate(told))
        await asyncio.sleep(0)  # it is on its way to the node when we say so
        responder.listening(told)
        for number in itertools.count(1):
            session = await listening
            # The next one may come while this one takes its time.
            task = asyncio.ensure_future(responder.respond(number, session))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if number == count:
                break
            listening = asyncio.ensure_future(asa.listen_negotiate(told))
        await asyncio.gather(*under_way)


class _Responder:
    """Answers negotiations by one rule, and says what happens."""

    def __init__(self, policy: str, counter: Any, reason: str | None, as_json: bool) -> None:
        self._policy = policy
        self._counter = counter
        self._reason = reason
        self._as_json = as_json

    def listening(self, told: Objective) -> None:
        """Say that it has begun."""
        if self._as_json:
            print_line(json_text({"event": "listening", "objective": told.name}))
        else:
            print_line(f"answering negotiations of {printable(told.name)}")

    async def respond(self, number: int, session: Session) -> None:
        """Lead one negotiation to its end."""
        dry = bool(session.objective.flags & ObjectiveFlag.F_NEG_DRY)
        self._say(number, "request", "asks for", session.value, dry=dry)
        try:
            async with session:
                await self._negotiate(number, session)
        except AsaError as error:
            self._say(number, "failed", "failed:", reason=str(error))

    async def _negotiate(self, number: int, session: Session) -> None:
        if self._policy == "decline":
            await session.decline(self._reason)
            self._say(number, "declined", "declined")
            return
        if self._policy == "accept":
            await session.accept()
        while not session.ended:
            if session.value == self._counter:
                await session.accept()
                break
            self._say(number, "counter", "is offered", self._counter)
            await session.offer(self._counter)
            if not session.ended:
                self._say(number, "request", "asks for", session.value)
        self._say(number, "agreed", "agreed on", session.value)

    def _say(
        self,
        number: int,
        event: str,
        words: str,
        value: Any = NO_VALUE,
        *,
        reason: str | None = None,
        dry: bool = False,
    ) -> None:
        if self._as_json:
            known = {} if value is NO_VALUE else {"value": json_data(value)}
            why = {} if reason is None else {"reason": reason}
            run = {"dry_run": True} if dry else {}
            print_line(json_text({"event": event, "negotiation": number, **known, **why, **run}))
            return
        what = "" if value is NO_VALUE else shown(value)
        if reason is not None:
            what = printable(reason)
        print_line(f"{number}: {words} {what}".rstrip() + (" (dry run)" if dry else ""))
