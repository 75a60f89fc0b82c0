"""The node on the registrar's own machine, the first of the domain: nobody else can let it in again.

While the registrar runs, it renews its certificate like every other node. After a time in which the machine
was off, its certificate may have expired; then there is no ACP in which it could ask, and the registrar,
which has the CA and the node's directory, gives it a new one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import Engine

from minerva.brski.registrar import addresses
from minerva.brski.registrar.authority import Authority, record_certificate
from minerva.brski.registrar.database import DeviceState, reading, record_event, writing
from minerva.brski.registrar.devices import find_device
from minerva.brski.registrar.domain import load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.init import OWN_NODE
from minerva.core.secret import Secret
from minerva.pki.errors import IdentityError
from minerva.pki.identity import Identity, load_identity, store_identity
from minerva.pki.keys import dump_private_key, generate_key


def renew_own_node(
    directory: Path, engine: Engine, authority: Authority, *, now: datetime
) -> Identity | None:
    """Give the node with the state directory ``directory`` a new certificate, if that of now has expired.

    Return what it is now, or ``None`` if there was nothing to do: the certificate is good, there is no node,
    or one of another domain. Raises :class:`RegistrarError` and what the CA raises.
    """
    try:
        old = load_identity(directory)
    except IdentityError:
        return None
    if now <= old.certificate.not_valid_after_utc:
        return None
    with reading(engine) as connection:
        domain = load_domain(connection)
        device = find_device(connection, None, OWN_NODE)
        name = None if device is None else addresses.assigned(connection, device.id, domain.name)
    if device is None or name is None or name.address != old.node_name.address:
        return None
    if device.state is not DeviceState.ENROLLED:
        raise RegistrarError(f"the node of this machine is {device.state.value}: it gets no new certificate")
    key = generate_key("p256")
    issued = authority.certify(domain, key, name, lifetime=domain.certificate_lifetime, now=now)
    identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
    with writing(engine) as connection:
        record_certificate(connection, issued.certificate, device.id, now)
        record_event(connection, "own-node", when=now, device_id=device.id)
        store_identity(directory, identity, Secret(dump_private_key(key)))
    return identity
