"""GRASP for programs: the API of RFC 8991, for any process of a host that runs a node (docs/asa.md).

For scripts without asyncio, :mod:`minerva.asa.blocking` has ``Grasp``, ``Asa`` and ``Session`` that wait.
"""

from minerva.asa.client import Grasp
from minerva.asa.encoded import encoded, raw
from minerva.asa.objects import Asa, Session
from minerva.asa.protocol import TraceRecord
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.options import (
    NO_VALUE,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Objective,
    UriLocator,
)

__all__ = [
    "NO_VALUE",
    "Asa",
    "AsaError",
    "AsaLocator",
    "ErrorCode",
    "FqdnLocator",
    "Grasp",
    "IPv4Locator",
    "IPv6Locator",
    "Objective",
    "ObjectiveFlag",
    "Session",
    "TaggedObjective",
    "TraceRecord",
    "TransportProto",
    "UriLocator",
    "encoded",
    "raw",
]
