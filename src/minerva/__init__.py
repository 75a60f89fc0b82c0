"""Minerva: a zero-configuration Autonomic Control Plane (RFC 8994) for Linux."""

__version__ = "0.1.0"
