"""Whether a device's history, as its MASA tells it, is one to go on with (RFC 8995 section 5.8.3)."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass

from minerva.brski.registrar.config import Audit
from minerva.core.text import printable
from minerva.voucher.audit import VERSION, AuditEvent, AuditLog
from minerva.voucher.errors import AuditLogDecodeError

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """``objections`` are why the device must not go on, ``remarks`` what the operator may want to know."""

    objections: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def acceptable(self) -> bool:
        """Whether the device may go on."""
        return not self.objections


def judge(data: bytes | None, own: Collection[bytes], rules: Audit) -> Verdict:
    """Return what to think of the audit log in ``data``, which is ``None`` if the MASA has none.

    ``own`` are the domainIDs that are ours. The entry of the voucher just made is one of them.
    """
    if data is None:
        return _unknown("the MASA has no audit log of the device", rules)
    try:
        log = AuditLog.decode(data)
    except AuditLogDecodeError as error:
        return _unknown(f"the MASA's audit log cannot be read: {error}", rules)
    objections: list[str] = []
    remarks: list[str] = []
    if log.version > VERSION:
        remarks.append(f"the audit log is of version {log.version}, of which only a part is understood")
    ours = {*own, *(base64.b64decode(domain) for domain in rules.domains)}
    foreign = [event for event in log.events if event.domain_id not in ours]
    if foreign:
        said = f"the device was in other domains: {_listed(foreign)}"
        (objections if rules.foreign == "refuse" else remarks).append(said)
    nonceless = [event for event in log.events if event.nonce is None]
    strange = [event for event in nonceless if event.domain_id not in ours]
    if nonceless and (rules.nonceless == "refuse" or (strange and rules.nonceless == "own")):
        who = _listed(nonceless if rules.nonceless == "refuse" else strange)
        objections.append(f"there are vouchers without a nonce, good for another takeover: {who}")
    elif nonceless:
        remarks.append(f"there are vouchers without a nonce: {_listed(nonceless)}")
    if log.arbitrary:
        said = f"{log.arbitrary} entries of the audit log were left out by the MASA"
        (objections if rules.truncated == "refuse" else remarks).append(said)
    return Verdict(tuple(objections), tuple(remarks))


def _unknown(said: str, rules: Audit) -> Verdict:
    return Verdict((said,)) if rules.unknown == "refuse" else Verdict(remarks=(said,))


def _listed(events: list[AuditEvent]) -> str:
    """Return the domains of ``events`` and the last date of each, the first few of them."""
    latest: dict[bytes, AuditEvent] = {}
    for event in events:
        known = latest.get(event.domain_id)
        if known is None or event.date > known.date:
            latest[event.domain_id] = event
    shown = []
    for domain, event in list(latest.items())[:_SHOWN]:
        name = base64.b64encode(domain).decode("ascii")
        shown.append(f"{name[:64]} ({event.date:%Y-%m-%d}, {printable(event.assertion)})")
    more = len(latest) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
