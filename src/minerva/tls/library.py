"""What pyOpenSSL does not offer in public. Nothing else in Minerva reaches behind its face."""

from __future__ import annotations

from OpenSSL import SSL
from OpenSSL._util import lib


def clear_errors() -> None:
    """Forget the errors that the library still remembers in this thread.

    Whoever caused them and on whichever connection: it tells them as the reason when the next operation
    fails, and before OpenSSL 4 it takes them for its failure.
    """
    lib.ERR_clear_error()


def set_groups(context: SSL.Context, groups: str) -> bool:
    """Make ``groups``, separated by colons, the only ones for key agreement, the best one first.

    Returns ``False`` where the binding does not have the function any more; the library's defaults stay.
    """
    return _set(context, "SSL_CTX_set1_curves_list", groups)


def set_signature_algorithms(context: SSL.Context, algorithms: str) -> bool:
    """Make ``algorithms``, separated by colons, the only ones for signatures; else as :func:`set_groups`."""
    return _set(context, "SSL_CTX_set1_sigalgs_list", algorithms)


def _set(context: SSL.Context, function: str, value: str) -> bool:
    call = getattr(lib, function, None)
    if call is None:
        return False
    if call(context._context, value.encode()) != 1:
        clear_errors()
        raise ValueError(f"{function} does not take {value}")
    return True
