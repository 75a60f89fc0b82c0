"""A node of the ACP's one RPL instance: storing mode, OF0, over point-to-point channels.

``selection`` says how DODAG and parents are chosen and why there are no loops; ``intake`` and ``downward``
keep what the children announced; ``announcing`` and ``dao`` keep each parent informed; ``channel`` times DIOs
and DISs. This module joins them: messages come in, routes, events and datagrams go out.

The node announces its own prefix to up to three parents at a time, each with other Path Control bits. Only
the preferred one carries the default route. What changes downwards waits ``delay_dao`` for company, except
that something has become unreachable: that goes up at once. A parent that is left while it works gets its
No-Path a moment later, when the new parents know the path.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, IPv6Network
from random import Random

from minerva.rpl.announcing import Announcer
from minerva.rpl.channel import Channel, Neighbour, is_dodag_id
from minerva.rpl.config import MIN_HOP_RANK_INCREASE, Preference, RplConfig
from minerva.rpl.downward import NEVER, TargetTable
from minerva.rpl.errors import RplDecodeError, RplUsageError, UnknownCode
from minerva.rpl.events import (
    DEFAULT_ROUTE,
    TRANSITIONS,
    DaoUnanswered,
    DodagCause,
    DodagChanged,
    Drop,
    NeighbourCause,
    NeighbourHeard,
    NeighbourLost,
    NextHop,
    ParentsChanged,
    Role,
    RplDatagram,
    RplEvent,
)
from minerva.rpl.intake import is_acceptable, take_groups
from minerva.rpl.messages import (
    ALL_RPL_NODES,
    DEFAULT_INSTANCE,
    INFINITE_RANK,
    Dao,
    DaoAck,
    Dio,
    Dis,
    Message,
    decode,
)
from minerva.rpl.routes import RouteTable
from minerva.rpl.selection import Choice, Dodag, DodagMemory, OwnDodag, choose
from minerva.rpl.sequence import INITIAL_SEQUENCE, increment, is_older
from minerva.rpl.status import RplStatus, neighbour_status

_MIN_REFRESH = 10.0
_FAREWELLS = 2


class RplNode:
    """One node. ``receive`` never raises for what is in a message; ``dropped`` counts what was refused.

    ``dodag_id`` is the node's own ACP address, ``prefix`` the prefix of its acp-node-name (/127, /120 or
    /112), ``random`` spreads timers. Whoever installs the routes must also install ``black_hole`` (RFC 8994
    section 6.12.1.11), which is no event as it never changes.
    """

    def __init__(
        self,
        dodag_id: IPv6Address,
        prefix: IPv6Network,
        preference: Preference = Preference.DEFAULT,
        *,
        random: Random,
        config: RplConfig | None = None,
    ) -> None:
        if dodag_id not in prefix or not is_acceptable(prefix):
            raise RplUsageError(f"{dodag_id} and {prefix} are no ACP address and its prefix")
        self.dodag_id = dodag_id
        self.prefix = prefix
        self.role = Role.ROOT
        self._events: deque[RplEvent] = deque()
        self.dropped: Counter[Drop] = Counter()
        self.sent: Counter[str] = Counter()
        self._config = config or RplConfig()
        self._random = random
        self._own_configuration = self._config.dodag_configuration()
        self._own = OwnDodag(dodag_id, preference)
        self._dodag = self._own.dodag
        self._rank = MIN_HOP_RANK_INCREASE
        self._dtsn = INITIAL_SEQUENCE
        self._memory = DodagMemory(
            self._config.hold_down, self._config.hold_down_maximum, self._config.stable_after
        )
        self._channels: dict[int, Channel] = {}
        self._targets = TargetTable(self._config.superseded_grace)
        self._announcer = Announcer(prefix, self._targets, self._own_configuration)
        self._refresh_due = NEVER
        self._hold_due = NEVER
        self._routes = RouteTable(self._events.append)
        self._root_route: IPv6Network | None = None
        self._datagrams: list[RplDatagram] = []

    # What the driver calls.

    @property
    def black_hole(self) -> IPv6Network:
        """For which prefix to install an unreachable route; longer prefixes in use override it."""
        return self.prefix

    @property
    def parents(self) -> tuple[int, ...]:
        """The interfaces of the parents, the preferred one first; empty at a root."""
        return self._announcer.parents

    @property
    def routes(self) -> dict[IPv6Network, NextHop]:
        """All routes, as the events so far (taken or not) have made them."""
        return self._routes.copy()

    def interface_up(self, interface: int, link_local: IPv6Address, rank_factor: int, now: float) -> None:
        """Use ``interface``, on which this node is ``link_local``: a channel is up.

        ``rank_factor`` is ``HIGH_SPEED_FACTOR`` or ``LOW_SPEED_FACTOR``. Raises :class:`RplUsageError` if
        the interface is up already.
        """
        if interface in self._channels:
            raise RplUsageError(f"interface {interface} is up already; take it down first")
        if self.role is Role.STOPPED:
            return
        channel = Channel(interface, link_local, rank_factor, self._config, self._random)
        self._channels[interface] = channel
        channel.opened(now)
        self._run(now)

    def interface_down(self, interface: int, now: float) -> None:
        """Stop using ``interface``, whose channel is closed or whose peer is dead: react at once."""
        channel = self._channels.pop(interface, None)
        if channel is not None and self.role is not Role.STOPPED:
            self._lose_neighbour(channel, NeighbourCause.INTERFACE_DOWN, now)
            self._run(now)

    def set_preference(self, preference: Preference, now: float) -> None:
        """Change how much this node wants to be the root, as when a registrar starts on it."""
        if preference != self._own.preference and self.role is not Role.STOPPED:
            self._own.preference = preference
            if self.role is Role.ROOT:
                # All of this DODAG must learn of it, and a new version makes the old description void.
                self._start_version(DodagCause.GLOBAL_REPAIR, now)
            self._evaluate(now)
            self._run(now)

    def set_subnets(self, subnets: Iterable[IPv6Network], now: float) -> None:
        """Announce these as well: the /64 of each ACP connect interface (RFC 8994 section 6.12.1.11)."""
        wanted = list(subnets)
        if not all(is_acceptable(subnet) for subnet in wanted):
            raise RplUsageError("only prefixes of the ACP, /64 or longer, can be announced")
        changed = self._announcer.set_subnets(wanted)
        for interface in self.parents:
            self._channels[interface].session.mark(changed, now)
        self._run(now)

    def global_repair(self, now: float) -> None:
        """Start a new version of the DODAG, if this node is its root: an administrator's last resort."""
        if self.role is Role.ROOT:
            self._start_version(DodagCause.GLOBAL_REPAIR, now)
            self._run(now)

    def shutdown(self, now: float) -> None:
        """Say goodbye: poison upward routes through this node, withdraw downward ones. Nothing follows."""
        if self.role is Role.STOPPED:
            return
        self._rank = INFINITE_RANK
        for channel in self._channels.values():
            daos = channel.session.farewell(self._announcer.view(channel.interface, now))
            for _ in range(_FAREWELLS):
                self._send(channel, ALL_RPL_NODES, self._dio())
                if channel.neighbour is not None:
                    for dao in daos:
                        self._send(channel, channel.neighbour.address, dao)
        self._channels.clear()
        self._announcer.parents = ()
        self._routes.clear()
        self._change_role(Role.STOPPED, self._dodag, DodagCause.SHUTDOWN)

    def receive(
        self, interface: int, data: bytes, source: IPv6Address, destination: IPv6Address, now: float
    ) -> None:
        """Take an ICMPv6 message of type 155 that came in on ``interface``."""
        channel = self._channels.get(interface)
        if channel is None:
            self.dropped[Drop.UNKNOWN_INTERFACE] += 1
            return
        refusal = channel.refuses(source, destination)
        if refusal is not None:
            self.dropped[refusal] += 1
            return
        try:
            message = decode(data)
        except UnknownCode:
            self.dropped[Drop.UNKNOWN_CODE] += 1
            return
        except RplDecodeError:
            self.dropped[Drop.MALFORMED] += 1
            return
        if not isinstance(message, Dis) and message.instance != DEFAULT_INSTANCE:
            self.dropped[Drop.OTHER_INSTANCE] += 1
            return
        multicast = destination == ALL_RPL_NODES
        neighbour = self._hear(channel, source, multicast, now)
        if isinstance(message, Dio):
            self._receive_dio(channel, neighbour, message, now)
        elif isinstance(message, Dis):
            self._receive_dis(channel, neighbour, message, multicast, now)
        elif multicast:
            self.dropped[Drop.NOT_UNICAST] += 1
        elif isinstance(message, Dao):
            self._receive_dao(channel, neighbour, message, now)
        else:
            self._receive_dao_ack(channel, neighbour, message, now)
        self._run(now)

    def datagrams_to_send(self, now: float) -> list[RplDatagram]:  # noqa: ARG002 -- the contract of a core
        """Return, and forget, what is to be sent."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def next_event(self) -> RplEvent | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""
        if self.role is Role.STOPPED:
            return None
        times = [channel.next_timer for channel in self._channels.values()]
        when = min([*times, self._refresh_due, self._hold_due, self._targets.next_sweep])
        return None if when == NEVER else when

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``. Harmless when nothing is."""
        if self.role is Role.STOPPED:
            return
        if self._hold_due <= now:
            self._evaluate(now)
        if self._refresh_due <= now:
            self._refresh(now)
        if self._targets.next_sweep <= now:
            self._targets_changed(self._targets.sweep(now), now)
        self._run(now)

    def status(self, now: float) -> RplStatus:
        """Return all that an operator may want to know."""
        return RplStatus(
            role=self.role,
            preference=self._own.preference,
            dodag_id=self._dodag.dodag_id,
            version=self._dodag.version,
            grounded=self._dodag.grounded,
            root_preference=self._dodag.preference,
            rank=self._rank,
            parents=tuple(hop for i in self.parents if (hop := self._next_hop(i)) is not None),
            neighbours=tuple(
                neighbour_status(channel, self._targets, now) for channel in self._channels.values()
            ),
            routes=self._routes.copy(),
            targets=len(self._targets),
            sent=dict(self.sent),
            dropped={drop.value: count for drop, count in self.dropped.items()},
        )

    # Messages.

    def _hear(self, channel: Channel, source: IPv6Address, multicast: bool, now: float) -> Neighbour:
        neighbour = channel.neighbour
        if neighbour is not None and neighbour.address != source:
            self._lose_neighbour(channel, NeighbourCause.REPLACED, now)
            neighbour = None
        if neighbour is None:
            neighbour = channel.neighbour = Neighbour(source, now, hello_at=now)
            self._events.append(NeighbourHeard(channel.interface, source))
            channel.solicit(now)
            channel.dio_changed(now)
        if not (multicast or neighbour.hears_us):
            neighbour.hears_us = True
            self._evaluate(now)
        channel.heard(now)
        return neighbour

    def _receive_dio(self, channel: Channel, neighbour: Neighbour, dio: Dio, now: float) -> None:
        if not is_dodag_id(dio.dodag_id):
            self.dropped[Drop.BAD_DODAG_ID] += 1
            return
        old = neighbour.dio
        if dio == old:
            return
        neighbour.take_dio(dio)
        channel.heard(now)
        ours = dio.dodag_id == self.dodag_id and dio.rank != INFINITE_RANK
        if ours and self._own.overtake(dio.version, now) and self.role is Role.ROOT:
            self._start_version(DodagCause.OWN_DODAG_HEARD, now)
        if old is not None and old.dtsn != dio.dtsn and channel.interface in self.parents:
            channel.session.start_over(self._announcer.everything(), now + self._config.delay_dao)
        self._evaluate(now)

    def _receive_dis(
        self, channel: Channel, neighbour: Neighbour, dis: Dis, multicast: bool, now: float
    ) -> None:
        if not dis.asks_for(DEFAULT_INSTANCE, self._dodag.dodag_id, self._dodag.version):
            self.dropped[Drop.NOT_ASKED] += 1
            return
        if not multicast:
            channel.reply_wanted(now)
            return
        channel.dio_wanted(now)
        if now - neighbour.hello_at < self._config.hello_gap:
            return
        # A neighbour asks everybody only when it knows nobody: it has restarted, and forgotten what it told
        # us and what we told it.
        neighbour.hello_at = now
        neighbour.dao_sequence = None
        self._doubt(channel, now)
        if channel.interface in self.parents:
            channel.session.start_over(self._announcer.everything(), now + self._config.delay_dao)

    def _receive_dao(self, channel: Channel, neighbour: Neighbour, dao: Dao, now: float) -> None:
        last = neighbour.dao_sequence
        if last is not None and is_older(dao.sequence, last):
            if now - neighbour.dao_at < self._config.reorder_time:
                self.dropped[Drop.OLD_DAO] += 1
                return
            # Too late to be late: it counts anew.
            self._doubt(channel, now)
        groups = dao.groups()
        announces = any(transit.path_lifetime for group in groups for transit in group.transits)
        if announces and channel.interface in self.parents:
            # One of the two has old information. Ask for the neighbour's; it will repeat the DAO.
            self.dropped[Drop.DAO_FROM_PARENT] += 1
            channel.solicit(now)
            return
        neighbour.dao_sequence, neighbour.dao_at = dao.sequence, now
        intake = take_groups(
            self._targets,
            channel.interface,
            groups,
            own=self._announcer.own,
            seconds=self._announcer.seconds,
            limit=self._config.max_targets_per_neighbour,
            now=now,
        )
        self.dropped += intake.refused
        if dao.acknowledge:
            self._send(channel, neighbour.address, DaoAck(dao.sequence, intake.status, dao.dodag_id))
        self._targets_changed(intake.changed, now)

    def _receive_dao_ack(self, channel: Channel, neighbour: Neighbour, ack: DaoAck, now: float) -> None:
        suspicious = channel.session.suspicious
        if not ack.rejects:
            channel.session.acknowledged(ack.sequence, now)
        elif channel.session.rejected(ack.sequence, now):
            retry_in = channel.session.next_timer - now
            self._events.append(DaoUnanswered(channel.interface, neighbour.address, ack.status, retry_in))
        if channel.session.suspicious is not suspicious:
            self._evaluate(now)

    # DODAG and parents.

    def _evaluate(self, now: float) -> None:
        """Choose DODAG and parents anew from what is known of the neighbours."""
        offers = [offer for channel in self._channels.values() if (offer := channel.offer()) is not None]
        choice = choose(
            self._own.dodag,
            offers,
            lambda offer: self._memory.allows(offer, now),
            self._announcer.parents,
            self._config.max_parents,
        )
        if choice is not None:
            self._join(choice, now)
        elif self.role is not Role.ROOT:
            lost = self._dodag.priority > self._own.dodag.priority
            self._start_version(DodagCause.NO_PARENT if lost else DodagCause.BEST_ROOT, now)
        self._hold_due = self._memory.next_expiry(now)

    def _start_version(self, cause: DodagCause, now: float) -> None:
        """Become, or be again, the root of a new version of the node's own DODAG."""
        if self.role is not Role.ROOT:
            self._memory.left(self._dodag.dodag_id, now, lost=cause is DodagCause.NO_PARENT)
        self._own.new_version(now)
        self._rank = MIN_HOP_RANK_INCREASE
        self._announcer.configuration = self._own_configuration
        self._change_role(Role.ROOT, self._own.dodag, cause)
        self._set_parents((), now)
        self._dio_changed(now)

    def _join(self, choice: Choice, now: float) -> None:
        old, old_rank, old_configuration = self._dodag, self._rank, self._announcer.configuration
        new = choice.dodag
        if new.dodag_id != old.dodag_id and self.role is Role.ROUTER:
            self._memory.left(old.dodag_id, now, lost=new.priority < old.priority)
        self._rank, self._announcer.configuration = choice.rank, choice.configuration
        self._memory.advertised(new, choice.rank, now)
        if new.dodag_id != old.dodag_id or self.role is Role.ROOT:
            worse = new.priority < old.priority and self.role is Role.ROUTER
            self._change_role(Role.ROUTER, new, DodagCause.NO_PARENT if worse else DodagCause.BETTER_DODAG)
        elif new.version != old.version:
            self._change_role(Role.ROUTER, new, DodagCause.NEW_VERSION)
        self._dodag = new
        self._set_parents(choice.parents, now)
        if (old, old_rank, old_configuration) != (new, choice.rank, choice.configuration):
            self._dio_changed(now)

    def _change_role(self, role: Role, dodag: Dodag, cause: DodagCause) -> None:
        if role not in TRANSITIONS[self.role]:
            raise RplUsageError(f"a node that {self.role.value} cannot become {role.value}")
        self.role = role
        self._dodag = dodag
        self._events.append(DodagChanged(role, dodag.dodag_id, dodag.version, cause))

    def _set_parents(self, parents: tuple[int, ...], now: float) -> None:
        old, self._announcer.parents = self._announcer.parents, parents
        if old != parents:
            self._tell_parents(old, now)
            self._schedule_refresh(now)
            hops = tuple(hop for i in parents if (hop := self._next_hop(i)) is not None)
            self._events.append(ParentsChanged(hops, self._rank))
        self._update_upward_routes()

    def _tell_parents(self, old: tuple[int, ...], now: float) -> None:
        self._announcer.new_sequence()
        became_parents = [interface for interface in self.parents if interface not in old]
        changed: list[IPv6Network] = []
        for interface in became_parents:
            # Nobody can be parent and child: whatever it announced as a child was before that changed.
            changed += self._targets.drop_interface(interface, now)
        if changed:
            self._demand_daos(now)
        for interface in old:
            channel = self._channels.get(interface)
            if channel is not None and interface not in self.parents:
                channel.session.mark(channel.session.told, now + self._config.no_path_delay)
        everything = self._announcer.everything()
        for interface in self.parents:
            session = self._channels[interface].session
            if interface in became_parents:
                session.start_over(everything, now + self._config.delay_dao)
            else:
                session.mark(everything, now + self._config.delay_dao)
        self._targets_changed(changed, now)

    def _lose_neighbour(self, channel: Channel, cause: NeighbourCause, now: float) -> None:
        neighbour = channel.forget_neighbour()
        if neighbour is None:
            return
        self._events.append(NeighbourLost(channel.interface, neighbour.address, cause))
        lost = self._targets.drop_interface(channel.interface, now)
        if channel.interface in self.parents:
            self._evaluate(now)
        self._targets_changed(lost, now)

    # DIO and DIS.

    def _dio(self) -> Dio:
        dodag = self._dodag
        return Dio(
            dodag.version,
            self._rank,
            dodag.grounded,
            dodag.mode_of_operation,
            dodag.preference,
            self._dtsn,
            dodag.dodag_id,
            (self._announcer.configuration,),
        )

    def _dio_changed(self, now: float) -> None:
        for channel in self._channels.values():
            channel.dio_changed(now)

    def _demand_daos(self, now: float) -> None:
        """Make all children announce everything again (RFC 6550 section 9.6)."""
        self._dtsn = increment(self._dtsn)
        self._dio_changed(now)

    def _doubt(self, channel: Channel, now: float) -> None:
        """Drop what a restarted child announced before, unless it soon does again."""
        if self._targets.doubt(channel.interface, now + self._config.restart_grace):
            self._demand_daos(now)

    # Targets.

    def _targets_changed(self, prefixes: Sequence[IPv6Network], now: float) -> None:
        """Bring routes up to date and tell the parents: at once what cannot be reached any more."""
        if not prefixes:
            return
        gone = []
        for prefix in prefixes:
            self._update_route(prefix)
            if prefix not in self._targets:
                gone.append(prefix)
        for channel in self._channels.values():
            session = channel.session
            if channel.interface in self.parents:
                session.mark(prefixes, now + self._config.delay_dao)
            if gone:
                session.mark(session.told.intersection(gone), now)

    def _refresh(self, now: float) -> None:
        """Announce the node's own targets anew, before they expire anywhere."""
        self._announcer.new_sequence()
        for interface in self.parents:
            self._channels[interface].session.mark(self._announcer.own, now)
        self._schedule_refresh(now)

    def _schedule_refresh(self, now: float) -> None:
        if not self.parents:
            self._refresh_due = NEVER
            return
        lifetime = self._announcer.default_lifetime
        if lifetime == NEVER:
            lifetime = self._config.lifetime
        self._refresh_due = now + max(lifetime / 3, _MIN_REFRESH) * (0.8 + 0.2 * self._random.random())

    # Routes.

    def _next_hop(self, interface: int) -> NextHop | None:
        channel = self._channels.get(interface)
        return channel.next_hop if channel else None

    def _update_upward_routes(self) -> None:
        """The default route and the host route to the root go by the preferred parent."""
        old, self._root_route = self._root_route, None
        if self.role is Role.ROUTER:
            self._root_route = IPv6Network(self._dodag.dodag_id)
        self._routes.set(DEFAULT_ROUTE, self._next_hop(self.parents[0]) if self.parents else None)
        for prefix in (old, self._root_route):
            if prefix is not None:
                self._update_route(prefix)

    def _update_route(self, prefix: IPv6Network) -> None:
        if prefix == self._root_route:
            interface = self.parents[0] if self.parents else None
        else:
            interface = self._targets.best(prefix)
        self._routes.set(prefix, None if interface is None else self._next_hop(interface))

    # Sending.

    def _run(self, now: float) -> None:
        """Send what is due on every channel."""
        for channel in list(self._channels.values()):
            if channel.next_timer <= now:
                self._run_channel(channel, now)

    def _run_channel(self, channel: Channel, now: float) -> None:
        if channel.hello_due <= now:
            self._send(channel, ALL_RPL_NODES, Dis())
            channel.hello_sent(now)
        if channel.dis_due <= now:
            if channel.silent:
                self._lose_neighbour(channel, NeighbourCause.SILENT, now)
                channel.solicit(now)
            self._send(channel, channel.neighbour.address if channel.neighbour else ALL_RPL_NODES, Dis())
            channel.dis_sent(now)
        neighbour = channel.neighbour
        if channel.reply_due <= now:
            if neighbour is not None:
                self._send(channel, neighbour.address, self._dio())
            channel.reply_sent(now)
        if channel.dio_due <= now:
            self._send(channel, ALL_RPL_NODES, self._dio())
            channel.dio_sent(now)
        if neighbour is not None and channel.session.next_timer <= now:
            self._run_session(channel, neighbour, now)

    def _run_session(self, channel: Channel, neighbour: Neighbour, now: float) -> None:
        session = channel.session
        suspicious = session.suspicious
        dao = session.next_dao(self._announcer.view(channel.interface, now), now)
        if dao is not None:
            self._send(channel, neighbour.address, dao)
        elif session.suspicious and session.next_timer < NEVER:
            retry_in = session.next_timer - now
            self._events.append(DaoUnanswered(channel.interface, neighbour.address, None, retry_in))
            if not suspicious:
                self._evaluate(now)

    def _send(self, channel: Channel, destination: IPv6Address, message: Message) -> None:
        self.sent[type(message).__name__] += 1
        self._datagrams.append(RplDatagram(channel.interface, destination, message.encode()))
