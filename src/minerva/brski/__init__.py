"""Bootstrapping Remote Secure Key Infrastructure: pledge, registrar and MASA (RFC 8995)."""
