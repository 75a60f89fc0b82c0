"""One interface of the node: the neighbour behind it, and when to send it a DIO or a DIS."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from random import Random

from minerva.core.backoff import Backoff
from minerva.rpl.config import DOMAIN_SPACE, OBJECTIVE_FUNCTION_ZERO, RplConfig
from minerva.rpl.dao import DaoSession
from minerva.rpl.downward import NEVER
from minerva.rpl.events import Drop, NextHop
from minerva.rpl.messages import ALL_RPL_NODES, INFINITE_RANK, Dio, ModeOfOperation
from minerva.rpl.options import DodagConfiguration
from minerva.rpl.selection import Dodag, Offer, resulting_rank

_JITTER = 0.1


@dataclass(slots=True)
class Neighbour:
    """The one node at the other end of a channel."""

    address: IPv6Address
    heard_at: float
    dio: Dio | None = None
    configuration: DodagConfiguration | None = None
    """That of the DODAG version in ``dio``."""

    hears_us: bool = False
    """Whether it ever spoke to our own address: the channel carries both ways (RFC 6550 section 8.4)."""

    hello_at: float = -NEVER
    """When it last turned out to have started, by a multicast DIS or by being heard first."""

    dao_sequence: int | None = None
    dao_at: float = 0.0
    probes: int = 0
    """DIS sent since it fell silent."""

    def take_dio(self, dio: Dio) -> None:
        """Keep what the neighbour says; a DODAG Configuration is valid until it changes its DODAG version."""
        configuration = dio.configuration
        old = self.dio
        if configuration is not None:
            self.configuration = configuration
        elif old is None or (old.dodag_id, old.version) != (dio.dodag_id, dio.version):
            self.configuration = None
        self.dio = dio

    @property
    def complete(self) -> bool:
        """Whether all is known that is needed to judge it as a parent."""
        if self.dio is None or not self.hears_us:
            return False
        return self.configuration is not None or self.dio.rank == INFINITE_RANK


class Channel:
    """The state of one point-to-point interface. All times are absolute, ``NEVER`` for not at all."""

    def __init__(
        self, interface: int, link_local: IPv6Address, rank_factor: int, config: RplConfig, random: Random
    ) -> None:
        self.interface = interface
        self.link_local = link_local
        self.rank_factor = rank_factor
        self.neighbour: Neighbour | None = None
        self.session = DaoSession(config)
        self.dio_due = NEVER
        self.hello_due = NEVER
        self.dis_due = NEVER
        self.reply_due = NEVER
        self._config = config
        self._random = random
        self._dio_step = 0
        self._dio_at = -NEVER
        self._reply_at = -NEVER
        self._solicitation = Backoff(
            config.dis_initial, config.dis_maximum, jitter=_JITTER, random=random.random
        )
        self._hellos = 0
        self._complete = False

    def refuses(self, source: IPv6Address, destination: IPv6Address) -> Drop | None:
        """Return why a message between these two is not one of this channel, if so."""
        if not source.is_link_local or destination not in (ALL_RPL_NODES, self.link_local):
            return Drop.NOT_LINK_LOCAL
        return Drop.OWN_ADDRESS if source == self.link_local else None

    # DIO: at once when its content changed, repeated, then seldom.

    def dio_changed(self, now: float) -> None:
        """Send the DIO as soon as the minimum gap allows, and repeat it."""
        self._dio_step = 0
        self.dio_due = max(now, self._dio_at + self._config.dio_minimum_gap)

    def dio_wanted(self, now: float) -> None:
        """Send the DIO once more, soon: a multicast DIS asked for it."""
        self.dio_due = min(self.dio_due, max(now, self._dio_at + self._config.dis_reply_gap))

    def dio_sent(self, now: float) -> None:
        """Arm the next repetition, or the keep-alive."""
        repeats = self._config.dio_repeats
        self._dio_at = now
        if self._dio_step < len(repeats):
            gap = repeats[self._dio_step]
            self._dio_step += 1
        else:
            gap = self._config.dio_keepalive
        self.dio_due = now + gap * (1 + _JITTER * (2 * self._random.random() - 1))

    def reply_wanted(self, now: float) -> None:
        """Answer a unicast DIS; with a gap between answers, or two nodes that misunderstand make a storm."""
        if self.reply_due == NEVER:
            self.reply_due = max(now, self._reply_at + self._config.dis_reply_gap)

    def reply_sent(self, now: float) -> None:
        """Note that the answer went out."""
        self._reply_at = now
        self.reply_due = NEVER

    # DIS: to everybody at first, so that a neighbour that knows us notices a restart; then, while something
    # is unknown, ever more seldom; and to a neighbour that fell silent.

    def opened(self, now: float) -> None:
        """Say hello: the interface is new, or the node is."""
        self.hello_due = now
        self.dis_due = now + sum(self._config.dis_repeats) + self._config.dis_initial
        self.dio_changed(now)

    def hello_sent(self, now: float) -> None:
        """Arm the next of the first multicast DISs."""
        repeats = self._config.dis_repeats
        self.hello_due = now + repeats[self._hellos] if self._hellos < len(repeats) else NEVER
        self._hellos += 1

    def solicit(self, now: float) -> None:
        """Ask the neighbour for its DIO now, whatever is known already."""
        self._solicitation.reset()
        self.dis_due = min(self.dis_due, now)

    def heard(self, now: float) -> None:
        """Note that the neighbour is there, and stop asking if all is known."""
        neighbour = self.neighbour
        assert neighbour is not None
        neighbour.heard_at = now
        neighbour.probes = 0
        if neighbour.complete:
            self._solicitation.reset()
            self.dis_due = now + self._config.neighbour_silence
        elif self._complete:
            self.solicit(now)
        self._complete = neighbour.complete

    def dis_sent(self, now: float) -> None:
        """Arm the next DIS."""
        if self.neighbour is not None and self.neighbour.complete:
            self.neighbour.probes += 1
            self.dis_due = now + self._config.neighbour_probe_gap
        else:
            self.dis_due = now + self._solicitation.failed()

    def forget_neighbour(self) -> Neighbour | None:
        """Start again with whoever speaks next; return who was there."""
        neighbour, self.neighbour = self.neighbour, None
        self.session = DaoSession(self._config)
        self._complete = False
        return neighbour

    @property
    def next_hop(self) -> NextHop | None:
        """The neighbour as the next hop of a route."""
        return NextHop(self.interface, self.neighbour.address) if self.neighbour else None

    @property
    def silent(self) -> bool:
        """Whether the neighbour answered none of the probes."""
        return self.neighbour is not None and self.neighbour.probes >= self._config.neighbour_probes

    @property
    def next_timer(self) -> float:
        """When the next of all these is due."""
        return min(self.dio_due, self.hello_due, self.dis_due, self.reply_due, self.session.next_timer)

    def offer(self) -> Offer | None:
        """Return the neighbour as a possible parent, or ``None`` if it is none."""
        neighbour = self.neighbour
        if neighbour is None or neighbour.dio is None or neighbour.configuration is None:
            return None
        if not neighbour.hears_us:
            return None
        dio, configuration = neighbour.dio, neighbour.configuration
        if dio.mode_of_operation != ModeOfOperation.STORING or not is_usable(configuration):
            return None
        if dio.rank < configuration.min_hop_rank_increase:
            return None
        step, min_hop = self._config.step_of_rank, configuration.min_hop_rank_increase
        rank = resulting_rank(dio.rank, self.rank_factor, step, min_hop)
        if rank == INFINITE_RANK:
            return None
        dodag = Dodag(dio.dodag_id, dio.version, dio.grounded, dio.preference, dio.mode_of_operation)
        return Offer(self.interface, dodag, dio.rank, rank, configuration, self.session.suspicious)


def is_usable(configuration: DodagConfiguration) -> bool:
    """Return whether a node of this profile can be a router in such a DODAG."""
    return (
        configuration.objective_code_point == OBJECTIVE_FUNCTION_ZERO
        and configuration.min_hop_rank_increase > 0
        and configuration.default_lifetime > 0
        and configuration.lifetime_unit > 0
        and not configuration.authentication_enabled
    )


def is_dodag_id(address: IPv6Address) -> bool:
    """Return whether ``address`` may be that of a root in the ACP (RFC 6550 section 8.1)."""
    return address in DOMAIN_SPACE
