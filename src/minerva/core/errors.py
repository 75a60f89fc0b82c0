"""The roots of every exception that Minerva raises on purpose.

A protocol package derives its own family from these, so that a caller can tell apart the three cases
that need three different reactions: we misused the package (a bug, fix it), the peer broke the rules
(tell it, count it), and bytes that do not parse (drop them, count them).
"""

from __future__ import annotations


class MinervaError(Exception):
    """Base of all of Minerva's exceptions. ``str(error)`` says what is wrong and what to do."""


class DecodeError(MinervaError):
    """Bytes do not have the form that their protocol requires.

    The only exception a decoder may raise on bytes from the network. Each protocol has a subclass.
    """


class UsageError(MinervaError):
    """A person or a program asked for something that cannot be done as asked: one clear sentence."""
