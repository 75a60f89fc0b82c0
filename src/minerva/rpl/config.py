"""The numbers of the ACP's RPL profile (RFC 8994 section 6.12.1), and those that it leaves to us."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Network

from minerva.rpl.options import DodagConfiguration

OBJECTIVE_FUNCTION_ZERO = 0
"""The Objective Code Point of OF0 (RFC 6552), the only objective function in the ACP."""

DAO_RETRIES = 3
DAO_ACK_TIME_OUT = 0.256
"""Seconds until a DAO that asked for an acknowledgement is sent again (RFC 8994 section 6.12.1.4)."""

MIN_HOP_RANK_INCREASE = 256
"""DEFAULT_MIN_HOP_RANK_INCREASE of RFC 6550 section 17; also ROOT_RANK."""

HIGH_SPEED_FACTOR = 1
"""The rank factor of a link faster than 100 Mbit/s (RFC 8994 section 6.12.1.6)."""

LOW_SPEED_FACTOR = 5
"""The rank factor of other links. Above OF0's MAXIMUM_RANK_FACTOR of 4, but no peer sees the factor."""

DOMAIN_SPACE = IPv6Network("fd00::/8")
"""Where every ACP address is (RFC 8994 section 6.11.2): nothing else is taken from a neighbour."""

MIN_TARGET_LENGTH = 64
"""The shortest prefix taken from a neighbour: nodes announce /64 to /127 (RFC 8994 section 6.12.1.11)."""


class Preference(IntEnum):
    """DODAGPreference, how much a node wants to be the root (RFC 8994 section 6.12.1.12)."""

    DEFAULT = 0b001
    ACP_CONNECT = 0b010
    REGISTRAR = 0b011
    CONFIGURED_ROOT = 0b100

    @property
    def grounded(self) -> bool:
        """Whether the DODAG of such a root is grounded: it leads somewhere that nodes want to reach."""
        return self >= Preference.ACP_CONNECT


@dataclass(frozen=True, slots=True, kw_only=True)
class RplConfig:
    """What can be tuned; the defaults run. Times are in seconds.

    ``step_of_rank``: OF0's Sp. RFC 6552 suggests 3, with which the 17th hop in a chain of 100 Mbit/s links
    would have an infinite rank and be cut off; with 1 it is the 51st (the 255th on fast links).

    ``dio_repeats``: gaps between the repetitions of a DIO whose content changed. RFC 8994 section
    6.12.1.1.2 wants two or three at once; the later ones make up for lossy links. Then there is one every
    ``dio_keepalive``, so that what was lost all the same is repaired. Trickle is not used.

    ``dis_repeats``: gaps between the repetitions of the first multicast DIS on an interface. From
    ``dis_initial`` to ``dis_maximum`` go the gaps between later ones, as long as nothing is heard.

    ``hello_gap``: multicast DISs closer together are repetitions, and tell of one start.

    ``hold_down``: how long a node that lost a DODAG takes nobody in it for a parent whose rank is not lower
    than the lowest it had there itself (the time in which its former sub-DODAG hears of the loss). Doubles
    up to ``hold_down_maximum`` while the DODAG is lost again and again, within ``stable_after``.

    ``default_lifetime`` times ``lifetime_unit``: how long a downward route lives without a refresh, when
    this node is the root. Nodes refresh three times as often.
    """

    step_of_rank: int = 1
    max_parents: int = 3
    dio_repeats: tuple[float, ...] = (0.05, 0.1, 0.35, 1.5, 6.0)
    dio_minimum_gap: float = 0.01
    dio_keepalive: float = 60.0
    dis_repeats: tuple[float, ...] = (0.05, 0.1)
    dis_initial: float = 0.1
    dis_maximum: float = 60.0
    dis_reply_gap: float = 0.1
    hello_gap: float = 0.25
    neighbour_silence: float = 150.0
    neighbour_probes: int = 3
    neighbour_probe_gap: float = 1.0
    hold_down: float = 0.5
    hold_down_maximum: float = 8.0
    stable_after: float = 30.0
    delay_dao: float = 0.025
    no_path_delay: float = 0.2
    dao_backoff: float = 1.0
    dao_backoff_maximum: float = 32.0
    superseded_grace: float = 2.0
    reorder_time: float = 3.0
    restart_grace: float = 10.0
    default_lifetime: int = 30
    lifetime_unit: int = 60
    max_targets_per_neighbour: int = 16_384

    @property
    def lifetime(self) -> float:
        """How long a downward route lives by this node's own parameters, in seconds."""
        return float(self.default_lifetime * self.lifetime_unit)

    def dodag_configuration(self) -> DodagConfiguration:
        """Return what this node tells its DODAG when it is the root.

        Path Control Size 7, so that a node can split eight bits among its parents. The Trickle values are
        the defaults of RFC 6550 section 17 with no suppression, for implementations that want them.
        """
        return DodagConfiguration(
            path_control_size=7,
            dio_interval_doublings=20,
            dio_interval_min=3,
            dio_redundancy_constant=0,
            max_rank_increase=0,
            min_hop_rank_increase=MIN_HOP_RANK_INCREASE,
            objective_code_point=OBJECTIVE_FUNCTION_ZERO,
            default_lifetime=self.default_lifetime,
            lifetime_unit=self.lifetime_unit,
        )
