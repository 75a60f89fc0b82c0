"""An IKE SA that is up: it and its child SAs are replaced from time to time (RFC 7296 sections 2.8, 2.25).

Theory of operation. Whoever has its time first begins. A child SA is replaced make before break: the new one
is there on both sides before the one who made it deletes the old one. An IKE SA is replaced by a
:class:`Successor`, which takes over the child SAs and the number that the owner knows; who made it deletes
the old one, and that Delete, or the first request on the new one (an empty one is sent at once), tells the
other side that it counts. Until then the other side, which answered, goes on with the old one, as its answer
may be lost.

Both may begin at once. With a window of one in each direction there are not many cases:

* Both replace the same SA. Who gets the other's request while its own is on its way answers as usual and
  takes a note of the nonces. If its own is then granted, both have noted it, and both know by the lowest of
  the four nonces which new SA is redundant; its maker deletes it, and the other's maker deletes the old one.
  If its own is refused, the other was done before our request came: the other's counts.
* One replaces a child SA while the other replaces the IKE SA: both get TEMPORARY_FAILURE and try again after
  a time of random length. While an IKE SA is being replaced, or has unfinished business with its child SAs,
  it begins and answers no other such exchange, so that what the successor inherits is the same at both ends.
* A Delete comes while our request is on its way: it is done, and the answer to the request will fit.

The end of the last child SA is that of the IKE SA: alone it is of no use here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minerva.ikev2.children import REKEYABLE, Child, ChildInput, ChildState
from minerva.ikev2.constants import DhGroup, ExchangeType, NotifyType, ProtocolId, notify_name
from minerva.ikev2.credentials import Peer
from minerva.ikev2.crypto import IkeKeys, new_agreement
from minerva.ikev2.errors import IkeDecodeError, IkePeerError
from minerva.ikev2.events import ChildGone, ChildKeys, ChildUp, IkeRekeyed, State
from minerva.ikev2.ike_sa import NONCE_LENGTH, IkeSa, Input
from minerva.ikev2.message import Header, Protection, find_error, find_notify, one
from minerva.ikev2.payloads import Delete, Notify, Payload
from minerva.ikev2.proposals import SecurityAssociation
from minerva.ikev2.rekey import ChildRekeying, IkeRekeying, Rekeying, grant_child, grant_ike

_BUSY = (Notify(NotifyType.TEMPORARY_FAILURE),)
_MAX_DOUBLINGS = 4


class _ChildDeletion:
    """A request of ours to delete child SAs."""

    def __init__(self, children: Sequence[Child]) -> None:
        self.children = children


class RekeyingSa(IkeSa):
    """An IKE SA that can do, and answer, CREATE_CHILD_SA once it is up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rekey_at: float | None = None
        self._rekey_failures = 0
        self._dies_at: float | None = None
        # What is to be asked for first: the group of the handshake, or what the peer wanted instead since.
        self._rekey_group = self._context.config.groups[0]
        self._heir: Successor | None = None  # made in answer to the peer, and not confirmed yet

    # --- what the endpoint calls ---------------------------------------------------------------------------

    def receive(self, header: Header, data: bytes, port: int, now: float) -> None:
        super().receive(header, data, port, now)
        self._do_due(now)

    def rekey_child(self, now: float) -> None:
        """Replace the child SA as soon as the window has room."""
        for child in self.children:
            if child.state is ChildState.INSTALLED:
                child.due = min(child.due, now)
        self._do_due(now)

    def rekey_ike(self, now: float) -> None:
        """Replace this IKE SA as soon as the window has room."""
        if self._rekey_at is not None:
            self._rekey_at = min(self._rekey_at, now)
        self._do_due(now)

    def close(self, reason: str, now: float) -> None:
        heir, self._heir = self._heir, None
        if heir is not None:
            # The peer may use it already, or may never have heard of it: it is told on both.
            heir.discard(now)
        super().close(reason, now)

    def next_timer(self) -> float | None:
        timers = [timer for timer in (super().next_timer(), self._due_at()) if timer is not None]
        return min(timers, default=None)

    def on_timer(self, now: float) -> None:
        super().on_timer(now)
        self._do_due(now)

    # --- times ---------------------------------------------------------------------------------------------

    def _up(self, peer: Peer, child: ChildKeys, now: float) -> None:
        super()._up(peer, child, now)
        self._begin_lifetime(now)

    def _begin_lifetime(self, now: float) -> None:
        config = self._context.config
        self._rekey_at = now + self._context.earlier(config.ike_lifetime)
        self._dies_at = now + config.ike_lifetime + config.rekey_grace

    def _free(self) -> bool:
        """Whether a CREATE_CHILD_SA exchange, or a Delete of a child SA, may be begun."""
        return self._request is None and self._heir is None

    def _due_at(self) -> float | None:
        if self.state is not State.ESTABLISHED or self._dies_at is None or self._rekey_at is None:
            return None
        timers = [self._dies_at]
        if (timer := self.children.next_timer(window=self._free())) is not None:
            timers.append(timer)
        if self._free():
            timers.append(self._rekey_at)
        return min(timers)

    def _do_due(self, now: float) -> None:
        due = self._due_at()
        if due is None or now < due:
            return
        for child in self.children.find(ChildState.DRAINING, now):
            self._forget_child(child)
        if self._dies_at is not None and now >= self._dies_at:
            self.close("the IKE SA is too old, and the peer does not let it be rekeyed", now)
            return
        self._retire_overdue(now)
        if self.state is not State.ESTABLISHED or not self._free():
            return
        if retired := self.children.find(ChildState.RETIRED, now):
            self._delete_retired(retired, now)
        elif self._rekey_at is not None and now >= self._rekey_at:
            self._begin_ike(self._rekey_group, now)
        elif installed := self.children.find(ChildState.INSTALLED, now):
            installed[0].move(ChildInput.REKEY)
            self._begin_child(installed[0], self._rekey_group, now)

    def _retire_overdue(self, now: float) -> None:
        stuck = False
        for child in self.children.overdue(now):
            if child.state is ChildState.REKEYING:
                stuck = True
            else:
                child.retire(now)
        if stuck or not self.children.lasting:
            self.close("the child SA is too old, and the peer does not let it be rekeyed", now)

    def _retry_at(self, failures: int, now: float) -> float:
        wait = self._context.config.rekey_retry * (1 << min(failures, _MAX_DOUBLINGS))
        return now + wait * (0.5 + self._context.random())

    # --- child SAs: our requests ---------------------------------------------------------------------------

    def _ask(self, task: Rekeying, payloads: Sequence[Payload], now: float) -> None:
        task.tried.add(task.agreement.group)
        # The schedule of liveness, as this takes the place of a probe.
        self._send_request(
            payloads,
            self._context.config.liveness,
            now,
            exchange=ExchangeType.CREATE_CHILD_SA,
            task=task,
        )

    def _begin_child(self, child: Child, group: DhGroup, now: float, before: Rekeying | None = None) -> None:
        context = self._context
        task = ChildRekeying(
            context.random_bytes(NONCE_LENGTH),
            new_agreement(group),
            rival=before.rival if before else None,
            tried=before.tried if before else set(),
            child=child,
            spi_in=context.new_child_spi(),
            policy=context.child_policy,
        )
        context.counters["child SA: rekeying begun"] += 1
        self._ask(task, task.payloads(), now)

    def _finish_child(self, task: ChildRekeying, payloads: Sequence[Payload], now: float) -> None:
        old = task.child
        if self.state is not State.ESTABLISHED:
            self._context.child_spis.discard(task.spi_in)
        elif one(payloads, SecurityAssociation) is None:
            self._context.child_spis.discard(task.spi_in)
            self._child_refused(task, find_error(payloads), now)
        else:
            assert self._keys is not None
            try:
                keys, nonce_r = task.finish(payloads, self._keys)
            except (IkePeerError, IkeDecodeError):
                self._context.child_spis.discard(task.spi_in)
                raise
            new = self._add_child(keys, now, ChildState.INSTALLED)
            redundant = task.loses(nonce_r)
            self._context.events.append(ChildUp(self.number, self.address, keys, send=not redundant))
            if redundant:
                self._context.counters["child SA: rekeyed by both, ours goes"] += 1
                new.retire(now)
                if old in self.children:
                    old.move(ChildInput.REPLACED)
            elif old in self.children:
                old.retire(now + self._context.config.overlap)

    def _child_refused(self, task: ChildRekeying, error: Notify | None, now: float) -> None:
        old = task.child
        self._context.counters["child SA: rekeying refused"] += 1
        if old not in self.children:
            return  # deleted meanwhile; and if that was the end of all, it has been seen to
        group = self._group_wanted(task, error)
        if task.rival is not None:
            # The peer was done with its own request before it saw ours: it will delete the old one.
            old.move(ChildInput.REPLACED)
        elif group is not None:
            self._begin_child(old, group, now, task)
        elif error is not None and error.notify_type == NotifyType.CHILD_SA_NOT_FOUND:
            # Section 2.25: what we hold is of no use, and there is no other to go on with.
            self.close("the peer does not hold our child SA any more", now)
        else:
            old.move(ChildInput.REFUSED)
            old.failures += 1
            old.due = self._retry_at(old.failures - 1, now)

    def _group_wanted(self, task: Rekeying, error: Notify | None) -> DhGroup | None:
        """Return the group that the peer wants instead, if we have it and have not tried it yet."""
        if error is None or error.notify_type != NotifyType.INVALID_KE_PAYLOAD or len(error.data) != 2:
            return None
        wanted = int.from_bytes(error.data)
        if wanted in task.tried or wanted not in self._context.config.groups:
            return None
        self._rekey_group = DhGroup(wanted)
        return self._rekey_group

    def _delete_retired(self, children: Sequence[Child], now: float) -> None:
        for child in children:
            child.move(ChildInput.DELETE)
        spis = tuple(child.keys.spi_in.to_bytes(4) for child in children)
        self._send_request(
            (Delete(ProtocolId.ESP, spis),), self._context.config.liveness, now, task=_ChildDeletion(children)
        )

    def _finish_deletion(self, task: _ChildDeletion, now: float) -> None:
        for child in task.children:
            if child in self.children:
                child.move(ChildInput.DELETED)
                child.due = now + self._context.config.overlap

    def _finish_task(self, task: object, payloads: Sequence[Payload], now: float) -> None:
        try:
            match task:
                case ChildRekeying():
                    self._finish_child(task, payloads, now)
                case IkeRekeying():
                    self._finish_ike(task, payloads, now)
                case _ChildDeletion():
                    self._finish_deletion(task, now)
        except IkePeerError as error:
            # It has made an SA that is not what we asked for: there is no common ground left.
            self.close(str(error), now)

    # --- child SAs: the peer's requests --------------------------------------------------------------------

    def _task(self) -> object:
        return self._request.task if self._request is not None else None

    def _answer_create_child(self, payloads: Sequence[Payload], now: float) -> tuple[Payload, ...]:
        association = one(payloads, SecurityAssociation)
        rekey = find_notify(payloads, NotifyType.REKEY_SA)
        if self.state is not State.ESTABLISHED or self._heir is not None:
            return _BUSY
        try:
            if association is not None and association.proposals[0].protocol == ProtocolId.IKE:
                return self._answer_ike(payloads, now)
            if rekey is not None:
                return self._answer_child(rekey, payloads, now)
        except IkePeerError as error:
            self._context.counters[f"CREATE_CHILD_SA refused: {error.notify.name}"] += 1
            return (Notify(error.notify, error.data),)
        # A channel has one child SA, and what replaces it.
        return (Notify(NotifyType.NO_ADDITIONAL_SAS),)

    def _answer_child(self, rekey: Notify, payloads: Sequence[Payload], now: float) -> tuple[Payload, ...]:
        context, task = self._context, self._task()
        old = self.children.by_spi_out(int.from_bytes(rekey.spi))
        if old is None or rekey.protocol != ProtocolId.ESP:
            return (Notify(NotifyType.CHILD_SA_NOT_FOUND, protocol=rekey.protocol, spi=rekey.spi),)
        rivals = isinstance(task, ChildRekeying) and task.child is old
        if (
            isinstance(task, IkeRekeying)
            or old.state not in REKEYABLE
            or old.successor is not None
            or len(self.children) >= context.config.child_limit
        ):
            return _BUSY
        assert self._keys is not None
        spi_in = context.new_child_spi()
        try:
            grant = grant_child(
                payloads, spi_in, context.random_bytes(NONCE_LENGTH), self._keys, context.child_policy
            )
        except (IkePeerError, IkeDecodeError):
            context.child_spis.discard(spi_in)
            raise
        old.successor = self._add_child(grant.child, now, ChildState.UNCONFIRMED)
        if rivals:
            assert isinstance(task, ChildRekeying)
            task.rival = grant.lowest
        else:
            old.move(ChildInput.REPLACED)
        context.events.append(ChildUp(self.number, self.address, grant.child, send=False))
        return grant.payloads

    def _delete_children(self, deletes: Sequence[Delete], now: float) -> None:
        answered: list[bytes] = []
        for spi in [spi for delete in deletes if delete.protocol == ProtocolId.ESP for spi in delete.spis]:
            child = self.children.by_spi_out(int.from_bytes(spi))
            # A Delete of our own that crosses it says the same, so the answer does not say it again.
            if child is not None and child.state is not ChildState.DELETING:
                answered.append(child.keys.spi_in.to_bytes(4))
                successor = child.successor
                if successor is not None and successor.state is ChildState.UNCONFIRMED:
                    successor.move(ChildInput.CONFIRMED)
                self._forget_child(child)
        self._respond((Delete(ProtocolId.ESP, tuple(answered)),) if answered else ())
        if answered and self.state is State.ESTABLISHED and not self.children.lasting:
            self._report("the peer deleted the child SA", by_peer=True)
            self._delete((), now)

    def _forget_child(self, child: Child) -> None:
        self.children.remove(child)
        self._context.child_spis.discard(child.keys.spi_in)
        self._context.events.append(ChildGone(self.number, self.address, child.keys.spi_in))

    # --- the IKE SA: our requests --------------------------------------------------------------------------

    def _begin_ike(self, group: DhGroup, now: float, before: Rekeying | None = None) -> None:
        context = self._context
        task = IkeRekeying(
            context.random_bytes(NONCE_LENGTH),
            new_agreement(group),
            rival=before.rival if before else None,
            tried=before.tried if before else set(),
            spi=context.new_spi(),
            policy=context.policy,
        )
        context.counters["IKE SA: rekeying begun"] += 1
        self._ask(task, task.payloads(), now)

    def _finish_ike(self, task: IkeRekeying, payloads: Sequence[Payload], now: float) -> None:
        if one(payloads, SecurityAssociation) is None:
            self._ike_refused(task, find_error(payloads), now)
            return
        assert self._keys is not None
        keys, spi_r, nonce_r = task.finish(payloads, self._keys)
        heir = Successor(self, task.spi, task.spi, spi_r, keys, now, initiator=True)
        if self.state is not State.ESTABLISHED:
            heir.discard(now)
        elif task.loses(nonce_r):
            # The peer's counts. It knows that as soon as it has our answer, which its Delete will show.
            self._context.counters["IKE SA: rekeyed by both, ours goes"] += 1
            heir.discard(now)
        else:
            if self._heir is not None:
                self._heir.disinherit()
                self._heir = None
            self._pass_on(heir, now)
            self._delete((), now)

    def _ike_refused(self, task: IkeRekeying, error: Notify | None, now: float) -> None:
        self._context.counters["IKE SA: rekeying refused"] += 1
        group = self._group_wanted(task, error)
        if self.state is not State.ESTABLISHED:
            return
        if group is not None and task.rival is None:
            self._begin_ike(group, now, task)
            return
        self._rekey_at = self._retry_at(self._rekey_failures, now)
        self._rekey_failures += 1
        if error is not None:
            self._context.counters[f"IKE SA: rekeying refused: {notify_name(error.notify_type)}"] += 1

    # --- the IKE SA: the peer's requests -------------------------------------------------------------------

    def _answer_ike(self, payloads: Sequence[Payload], now: float) -> tuple[Payload, ...]:
        context, task = self._context, self._task()
        if isinstance(task, ChildRekeying | _ChildDeletion):
            return _BUSY
        assert self._keys is not None
        spi = context.new_spi()
        grant = grant_ike(payloads, spi, context.random_bytes(NONCE_LENGTH), self._keys, context.policy)
        self._heir = Successor(self, spi, grant.spi, spi, grant.keys, now, initiator=False)
        if isinstance(task, IkeRekeying):
            task.rival = grant.lowest
        return grant.payloads

    def _deleted_by_peer(self, now: float) -> None:
        if self._heir is not None and self.state is State.ESTABLISHED:
            self._pass_on(self._heir, now)
        super()._deleted_by_peer(now)

    def _pass_on(self, heir: Successor, now: float) -> None:
        """Let ``heir`` stand for the connection from now on; only the end of this SA is left to do."""
        self._heir = None
        self._move(Input.REKEYED)
        self._quiet = True
        self._drop_request()
        self._expires = now + self._context.config.linger
        heir.take_over(self, now)

    def _drop_request(self) -> None:
        """Forget our request: there is nobody any more who could answer it."""
        request, self._request = self._request, None
        if request is not None and isinstance(request.task, ChildRekeying):
            self._context.child_spis.discard(request.task.spi_in)

    def _end(self, now: float, *, linger: bool = True) -> None:
        heir, self._heir = self._heir, None
        if heir is not None:
            heir.disinherit()
            heir.end_quietly(now)
        self._drop_request()
        super()._end(now, linger=linger)


class Successor(RekeyingSa):
    """An IKE SA that was made by rekeying another (section 2.18). It is authenticated as that was.

    One that was made in answer to the peer waits for the first sign that the peer has it. Meanwhile, and for
    good if it turns out to be redundant, nothing of it is reported.
    """

    def __init__(
        self,
        predecessor: RekeyingSa,
        spi: bytes,
        spi_i: bytes,
        spi_r: bytes,
        keys: IkeKeys,
        now: float,
        *,
        initiator: bool,
    ) -> None:
        super().__init__(
            predecessor._context,
            predecessor.number,
            spi,
            predecessor.address,
            predecessor.port,
            now,
            initiator=initiator,
        )
        self.state = State.ESTABLISHED
        self.peer = predecessor.peer
        # When it was authenticated, which INITIAL_CONTACT of another SA is about.
        self.created, self.established = predecessor.created, predecessor.established
        self._predecessor: RekeyingSa | None = predecessor
        self._spi_i, self._spi_r = spi_i, spi_r
        self._keys = keys
        assert predecessor._protection is not None
        self._protection = Protection.of(
            keys, initiator=initiator, max_datagram=predecessor._protection.max_datagram
        )
        self._rekey_group = predecessor._rekey_group
        self._quiet = self._visible = True
        self._expires = now + self._context.config.successor_lifetime
        self._context.add(self)
        self._log_keys(keys, spi_r)

    def take_over(self, predecessor: RekeyingSa, now: float) -> None:
        """Stand for the connection from now on, with all of its child SAs."""
        self._predecessor = None
        self.children, predecessor.children = predecessor.children, self.children
        self._was_up, self._quiet = True, False
        self._in_doubt = predecessor._in_doubt
        self._expires = None
        self._last_heard = max(self._last_heard, predecessor._last_heard)
        self._begin_lifetime(now)
        self._context.succeeded(self)
        if self.initiator:
            # The Delete of the predecessor tells the peer; should it be lost, this does.
            self._send_request((), self._context.config.liveness, now)
        self._context.events.append(
            IkeRekeyed(self.number, self.address, self.initiator, self._spi_i, self._spi_r)
        )

    def disinherit(self) -> None:
        """Never take over: the other successor does, or there is nothing left."""
        self._predecessor = None

    def discard(self, now: float) -> None:
        """Delete this SA, of which nothing has been reported."""
        self._predecessor = None
        self._delete((), now)

    def end_quietly(self, now: float) -> None:
        """Forget this SA."""
        if self.state is not State.CLOSED:
            self._end(now, linger=False)

    def _handle_request(self, exchange: int, payloads: Sequence[Payload], now: float) -> None:
        predecessor = self._predecessor
        if predecessor is not None and not any(
            isinstance(payload, Delete) and payload.protocol == ProtocolId.IKE for payload in payloads
        ):
            # Only who has our answer can know this SA.
            predecessor._pass_on(self, now)
        super()._handle_request(exchange, payloads, now)

    def _end(self, now: float, *, linger: bool = True) -> None:
        predecessor, self._predecessor = self._predecessor, None
        if predecessor is not None and predecessor._heir is self:
            predecessor._heir = None
        super()._end(now, linger=linger)
